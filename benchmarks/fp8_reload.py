"""Shows where vLLM's layerwise reload spends its time: by call, by kind of layer, on the host and on the device.

A model with the shapes of Qwen3-8B or of half of Qwen3-30B-A3B is started with random weights in a vLLM of this process
and reloaded from tensors that are on its device already, by the adapter's own
:class:`~ckpt_transport_vllm.layerwise.LayerwisePass`; so nothing but the engine's loading is measured: first alone,
then under cProfile, then under torch's profiler. The tables come last.

Usage: ``python -m benchmarks.fp8_reload --model mixture --mode "online tensor"``, where vLLM is; VLLM_ARGUMENTS
may hold further arguments of LLM as JSON. On a CPU use ``--layers 1``, with the plugin of tests/vllm/cpu_fp8.py.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks._vllm_engine import names_of, start
from ckpt_transport import dtypes
from ckpt_transport_fp8 import Target as Quantized
from ckpt_transport_fp8 import quantized
from ckpt_transport_fp8.config import parse
from ckpt_transport_vllm.layerwise import LayerwisePass
from ckpt_transport_vllm.updated_model import UpdatedModel
from tests.support.vllm_server import ENVIRONMENT
from tests.vllm.fp8_modes import MODES

SHOWN = 25
Weights = list[tuple[str, torch.Tensor]]


def weights_of(config: Any, folder: Path, device: torch.device) -> Weights:
    """Random tensors by the checkpoint's names; those of one shape are one tensor, so that they take little memory."""
    names = list(names_of(config))
    of_shape = {shape: torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(std=0.02) for _, shape in names}
    plain = [(name, of_shape[shape]) for name, shape in names]
    content = json.loads((folder / "config.json").read_text())
    if "quantization_config" not in content:
        return plain
    target = Quantized("the model", parse(content, "its configuration"))
    made: dict[tuple[str, tuple[int, ...]], Weights] = {}
    found: Weights = []
    for name, tensor in plain:
        kind = name.rpartition(".")[0].rpartition(".")[2], tuple(tensor.shape)
        if kind not in made:
            made[kind] = _quantize(f"model.{kind[0]}.weight", tensor, target) if tensor.dim() == 2 else []
        found += [(name + suffix, each) for suffix, each in made[kind]] or [(name, tensor)]
    return found


def _quantize(name: str, tensor: torch.Tensor, target: Quantized) -> Weights:
    loan = quantized({name: tensor}, target)
    assert loan.backing is not None
    whole = torch.empty(loan.backing.nbytes, dtype=torch.uint8, device=tensor.device)
    loan.backing.fill(whole, 0)
    return [
        (
            place.spec.name.removeprefix(name),
            dtypes.as_tensor(whole[place.offset : place.offset + place.nbytes], place.spec.dtype, place.spec.shape),
        )
        for place in loan.tensors
    ]


class Measured:
    """Everything about one engine's reloads; made in its worker."""

    def __init__(self, worker: Any, config: Any, folder: Path) -> None:
        model = worker.model_runner.get_model()
        self._target = UpdatedModel(model, worker.vllm_config.model_config, worker.vllm_config)
        self.device = next(model.parameters()).device
        self._weights = weights_of(config, folder, self.device)
        self.nbytes = sum(tensor.nbytes for _, tensor in self._weights)
        self.count = len(self._weights)

    def reload(self) -> float:
        """Seconds of one reload, the device's work included."""
        self._synchronize()
        started = time.perf_counter()
        reload = LayerwisePass(self._target, ())
        reload.begin()
        self._target.load(self._weights)
        reload.finish()
        self._synchronize()
        return time.perf_counter() - started

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def copies(self) -> float:
        """Seconds for a plain copy of the same bytes on the device."""
        target = {tensor.shape: torch.empty_like(tensor) for _, tensor in self._weights}
        self._synchronize()
        started = time.perf_counter()
        for _, tensor in self._weights:
            target[tensor.shape].view(torch.uint8).copy_(tensor.view(torch.uint8))
        self._synchronize()
        return time.perf_counter() - started


@contextmanager
def layers_timed(found: dict[str, list[float]]) -> Iterator[None]:
    """Note how long the host works on each layer, by its class."""
    from vllm.model_executor.model_loader.reload import layerwise

    process: Callable[[Any, Any], None] = layerwise._layerwise_process

    def timed(layer: Any, info: Any) -> None:
        started = time.perf_counter()
        process(layer, info)
        method = type(getattr(layer, "quant_method", None)).__name__
        found[f"{type(layer).__name__} ({method})"].append(time.perf_counter() - started)

    layerwise._layerwise_process = timed
    try:
        yield
    finally:
        layerwise._layerwise_process = process


def profile(measured: Measured, rounds: int) -> list[Table]:
    """Reload a few times, and say where the time went."""
    measured.reload()
    alone = median(measured.reload() for _ in range(rounds))
    copied = median(measured.copies() for _ in range(rounds))
    by_layer: defaultdict[str, list[float]] = defaultdict(list)
    with layers_timed(by_layer):
        together = measured.reload()
    profiler = cProfile.Profile()
    profiler.enable()
    under_profile = measured.reload()
    profiler.disable()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if measured.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as traced:
        measured.reload()
    summary = Table("what", "figure", title="reload")
    summary.add_row("tensors, GB", f"{measured.count:,}, {measured.nbytes / 1e9:.2f}")
    summary.add_row("seconds alone", f"{alone:.3f} = {measured.nbytes / alone / 1e9:.1f} GB/s")
    summary.add_row("a plain copy of the same bytes", f"{copied:.3f}; ratio {copied / alone:.3f}")
    summary.add_row("with layers timed, under cProfile", f"{together:.3f}, {under_profile:.3f}")
    return [summary, _layers(by_layer), _calls(profiler), _operations(traced, measured.device)]


def _layers(found: dict[str, list[float]]) -> Table:
    table = Table("kind of layer", "layers", "host s", "ms each", title="layers, as they are processed")
    for name, seconds in sorted(found.items(), key=lambda item: -sum(item[1])):
        table.add_row(name, f"{len(seconds):,}", f"{sum(seconds):.3f}", f"{sum(seconds) / len(seconds) * 1e3:.2f}")
    return table


def _calls(profiler: cProfile.Profile) -> Table:
    table = Table("call", "calls", "own s", "with callees s", title="calls, by cProfile")
    raw: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    for (file, line, name), (_, calls, own, whole, _) in sorted(raw.items(), key=lambda item: -item[1][2])[:SHOWN]:
        where = f"{Path(file).name}:{line} " if line else ""
        table.add_row(where + name, f"{calls:,}", f"{own:.3f}", f"{whole:.3f}")
    return table


def _operations(traced: Any, device: torch.device) -> Table:
    table = Table("operation", "calls", "host s", "device s", title="operations, by torch's profiler")
    launches: Counter[str] = Counter()
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(traced.key_averages(), key=lambda event: -getattr(event, key))
    for event in events:
        if event.key.startswith(("cudaLaunch", "cuLaunch", "cudaMemcpyAsync", "cudaStreamSynchronize")):
            launches[event.key] += event.count
    for event in events[:SHOWN]:
        table.add_row(
            event.key[:70],
            f"{event.count:,}",
            f"{event.self_cpu_time_total / 1e6:.3f}",
            f"{event.self_device_time_total / 1e6:.3f}",
        )
    for name, count in launches.items():
        table.add_row(f"[bold]{name}[/]", f"{count:,}", "", "")
    return table


def main(
    model: Annotated[str, typer.Option(help="dense or mixture.")] = "mixture",
    mode: Annotated[str, typer.Option(help=f"One of {', '.join(MODES)}; or bf16.")] = "online tensor",
    layers: Annotated[int | None, typer.Option(help="By default as many as the real model, or half of them.")] = None,
    rounds: Annotated[int, typer.Option(help="Repetitions.")] = 3,
) -> None:
    """Measure, and print tables."""
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import vllm

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        llm, config = start(folder, model, mode, layers)
        (tables,) = llm.collective_rpc(lambda worker: profile(Measured(worker, config, folder), rounds))
    console = Console(width=140)
    console.print(f"vLLM {vllm.__version__}, torch {torch.__version__}: {model}, {mode}")
    for table in tables:
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
