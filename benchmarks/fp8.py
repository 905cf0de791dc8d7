"""Measures how fast a source makes FP8 of BF16 weights, against copies on the same device, and what then travels.

For the shapes of Qwen3-8B and of half of Qwen3-30B-A3B, in random BF16 weights on the device, all its linear layers per
block of 128 x 128, per channel and per tensor:

* the *rate*: bytes read per second, for scales and elements together, against a copy of the same bytes on the device;
  elements are computed into slots of 64 MiB, one after the other, as an update does it. It is that of a version like
  the one before, as in training; what the first one takes, and on a GPU how long kernels run, is said beside it;
* the *bytes* of an update of a plain module in this process, against the same weights in BF16, and its time.

Usage: ``python -m benchmarks.fp8 --device cuda``; ``--layers`` makes the models smaller.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks._models import Holding, Shapes, dense, mixture, named_as_modules
from benchmarks._report import Row, report
from ckpt_transport import Config, ParameterServer
from ckpt_transport.checkpoint import Loan
from ckpt_transport_fp8 import Target, quantized
from ckpt_transport_fp8.config import parse
from ckpt_transport_torch import attach

SLOT_BYTES = 64 << 20
LAYERS = {"cpu": (2, 1), "cuda": (36, 24)}
"""Dense and mixture, where nothing else is asked for."""
console = Console(stderr=True)

BLOCK = {"quant_method": "fp8", "weight_block_size": [128, 128]}
TENSOR = {"quant_method": "fp8"}


def _channel() -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
    return {"quant_method": "compressed-tensors", "config_groups": {"all": {"targets": ["Linear"], "weights": weights}}}


SCHEMES: Mapping[str, dict[str, Any]] = {"per block": BLOCK, "per channel": _channel(), "per tensor": TENSOR}


def measure(device: torch.device, layers: tuple[int, int], rounds: int) -> list[Row]:
    """All rows."""
    rows: list[Row] = []
    for what, shapes in (
        (f"dense, {layers[0]} layers", dense(layers[0])),
        (f"mixture, {layers[1]}", mixture(layers[1])),
    ):
        weights = _weights(shapes, device)
        copied = _copy_seconds(sum(tensor.nbytes for tensor in weights.values()), device, rounds)
        console.print(f"{what}: {len(weights)} tensors, a copy takes {copied * 1e3:.1f} ms")
        rows += [_rate(what, name, weights, copied, device, rounds) for name in SCHEMES]
        rows += _update(what, weights, device, rounds)
        del weights
    return rows


def _weights(shapes: Shapes, device: torch.device) -> dict[str, torch.Tensor]:
    return {
        name: torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(std=0.02)
        for name, shape in named_as_modules(shapes).items()
    }


def _target(name: str) -> Target:
    return Target(name, parse({"quantization_config": SCHEMES[name]}, name))


def _copy_seconds(nbytes: int, device: torch.device, rounds: int) -> float:
    """For a copy of so many bytes, in pieces of a slot."""
    source, target = (torch.zeros(SLOT_BYTES, dtype=torch.uint8, device=device) for _ in range(2))

    def copy() -> None:
        for _ in range(nbytes // SLOT_BYTES + 1):
            target.copy_(source)

    return median(_timed(copy, device) for _ in range(rounds)) * nbytes / (SLOT_BYTES * (nbytes // SLOT_BYTES + 1))


def _rate(
    what: str, name: str, weights: Mapping[str, torch.Tensor], copied: float, device: torch.device, rounds: int
) -> Row:
    target = _target(name)
    nbytes = sum(tensor.nbytes for tensor in weights.values())
    loans: list[Loan] = []

    def scale() -> None:
        loans[:] = [quantized(weights, target)]

    def fill() -> None:
        _fill(loans[0], device)

    first = _timed(scale, device)
    _timed(fill, device)
    scales, elements = zip(*((_timed(scale, device), _timed(fill, device)) for _ in range(rounds)), strict=True)
    together = median(scales) + median(elements)
    detail = (
        f"{nbytes / together / 1e9:.1f} GB/s: scales {median(scales) * 1e3:.1f} ms{_kernels(scale, device)}, elements "
        f"{median(elements) * 1e3:.1f} ms{_kernels(fill, device)}; scales of the first version {first * 1e3:.1f} ms; "
        f"copy {nbytes / copied / 1e9:.1f} GB/s"
    )
    wanted = ">=0.5" if device.type == "cuda" else ""
    return Row(f"{name}, {what}: rate", copied / together, f"copy on {device.type}", wanted, detail)


def _kernels(work: Callable[[], object], device: torch.device) -> str:
    """How long the GPU itself is at work, in words; nothing for a CPU."""
    if device.type != "cuda":
        return ""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        _timed(work, device)
    busy = sum(event.self_device_time_total for event in profile.key_averages())
    return f" (kernels {busy / 1e3:.1f} ms)"


def _fill(loan: Loan, device: torch.device) -> None:
    backing = loan.backing
    assert backing is not None
    slot = torch.empty(SLOT_BYTES, dtype=torch.uint8, device=device)
    for offset in range(0, backing.nbytes, SLOT_BYTES):
        backing.fill(slot[: backing.nbytes - offset], offset)


def _update(what: str, weights: dict[str, torch.Tensor], device: torch.device, rounds: int) -> list[Row]:
    """Updates of modules that hold these weights in BF16, and in FP8 per block."""
    target = _target("per block")
    transport = "cuda_ipc" if device.type == "cuda" else "gloo"
    seconds: dict[str, float] = {}
    sent: dict[str, int] = {}
    linear: dict[str, int] = {}
    for kind in ("BF16", "FP8"):
        with ParameterServer(Config(transport=transport)) as server:
            stored = server.lend("v1", weights if kind == "BF16" else quantized(weights, target))
            specs = [tensor.spec for tensor in stored.manifest.tensors]
            taken = []
            with attach(Holding(specs, device)) as serving:
                for _ in range(rounds + 1):
                    done = server.update("v1", [serving.address])
                    assert done is not None
                    taken.append(done.seconds)
                    sent[kind] = sum(bucket.nbytes for bucket in done.plan.buckets)
            seconds[kind] = median(taken[1:])
            linear[kind] = sum(spec.nbytes for spec in specs if "_proj." in spec.name)
    detail = f"{sent['FP8'] / 1e6:,.0f} MB instead of {sent['BF16'] / 1e6:,.0f} MB over {transport}"
    time_detail = f"{seconds['FP8'] * 1e3:.0f} ms instead of {seconds['BF16'] * 1e3:.0f} ms over {transport}"
    share = f"they are {linear['BF16'] / sent['BF16']:.0%} of the model"
    return [
        Row(f"per block, {what}: linear layers with scales", linear["FP8"] / linear["BF16"], "BF16", "<=0.52", share),
        Row(f"per block, {what}: bytes on the wire, all", sent["FP8"] / sent["BF16"], "BF16", "", detail),
        Row(f"per block, {what}: time of an update", seconds["FP8"] / seconds["BF16"], "BF16", "", time_detail),
    ]


def _timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def main(
    device: Annotated[str, typer.Option(help="Where the weights are: cpu or cuda.")] = "cpu",
    layers: Annotated[int | None, typer.Option(help="Of both models; by default few on a CPU, else as real.")] = None,
    rounds: Annotated[int, typer.Option(help="Repetitions; the first is not counted.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Measure, and print a table."""
    counts = LAYERS[device] if layers is None else (layers, layers)
    report(measure(torch.device(device), counts, rounds), json)


if __name__ == "__main__":
    typer.run(main)
