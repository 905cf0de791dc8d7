"""Measures how long a vLLM takes to apply a version, by its loader and by a replay, and whole updates around that.

A vLLM in this process has the shapes of half of Qwen3-30B-A3B (or of Qwen3-8B) and weights of no meaning. First buckets
of one slot on its device are given to the engine, as a transport would; then a source, another process, updates it. The
first update is loaded by the loader, replayed beside it and compared bit by bit; after that a version is replayed, and
in the end every checksum is the one that the loader left. Usage: ``python -m benchmarks.vllm_apply``, where vLLM is;
VLLM_ARGUMENTS may hold further arguments of LLM as JSON. On a CPU use ``--layers 1``.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks._gpu_worker import Peer, host_to_device
from benchmarks._models import Shapes, size, tensors
from benchmarks._report import Row, report
from benchmarks._vllm_engine import names_of, start
from benchmarks.fp8_reload import Measured
from ckpt_transport import Config, LoadedBucket, ParameterServer
from ckpt_transport.planning import PlacedBytes, TensorSpec
from ckpt_transport.planning.values.alignment import align_up
from ckpt_transport_vllm.engine import VllmEngine
from ckpt_transport_vllm.quiesce import WorkerGate
from ckpt_transport_vllm.server import EXTENSION
from ckpt_transport_vllm.updated_model import UpdatedModel
from tests.support.vllm_server import ENVIRONMENT
from tests.vllm.fp8_modes import MODES

SLOT_BYTES = 64 << 20
LIMIT_SECONDS = 0.05
SHARE = 0.9
Place = tuple[TensorSpec, int, int, int]
console = Console(stderr=True)


def run_source(shapes: Shapes, address: str, pipe: Connection) -> None:
    """A source of one version at a time; it is told which to bring, over which transport, how often."""
    gpu = torch.cuda.is_available()
    while (order := pipe.recv())[0] != "stop":
        _, transport, version, rounds = order
        found = Brought()
        with ParameterServer(Config(transport=transport), rank=0, world_size=1) as server:
            stored = server.register("it", tensors=tensors(shapes, version))
            pool = stored.buffers[0]
            if gpu:
                pool.pin()
                host_to_device(pool.tensor, SLOT_BYTES)
            for _ in range(rounds):
                if gpu:
                    found.limits.append(host_to_device(pool.tensor, SLOT_BYTES))
                done = server.update("it", [address])
                assert done is not None
                found.updates.append(done.seconds)
                phases = ", ".join(f"{phase} {seconds * 1e3:.0f}" for phase, seconds in done.phases.items())
                found.apply_summary.append(f"{done.apply_summary[1]}; {phases}")
        pipe.send(found)


@dataclass
class Brought:
    """Seconds of updates and of the copies between them, and what the engine said of each update."""

    updates: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    apply_summary: list[str] = field(default_factory=list)


class Applied:
    """The engine of a worker, given buckets as a transport gives them."""

    def __init__(self, worker: Any, shapes: Shapes) -> None:
        config = worker.vllm_config
        target = UpdatedModel(worker.model_runner.get_model(), config.model_config, config)
        self.engine = VllmEngine(lambda: target, WorkerGate(worker), lambda: None, "", "vLLM")
        self._specs = [TensorSpec(name, "BF16", shape) for name, shape in shapes.items()]
        self._buckets = _cut(self._specs)
        self._slot = torch.randint(
            255, (max(places[-1][2] + places[-1][3] for places in self._buckets),), dtype=torch.uint8
        ).to(self.engine.device)

    def once(self) -> float:
        """Seconds of one version, the device's work included."""
        _synchronize()
        began = time.perf_counter()
        self.engine.prepare(self._specs, None)
        for number, places in enumerate(self._buckets):
            self.engine.load(LoadedBucket(number, self._slot, partial(list, [PlacedBytes(*place) for place in places])))
        self.engine.finish()
        _synchronize()
        return time.perf_counter() - began


def _cut(specs: Sequence[TensorSpec]) -> list[list[Place]]:
    """Buckets of whole tensors."""
    buckets: list[list[Place]] = [[]]
    end = 0
    for spec in specs:
        if buckets[-1] and end + spec.nbytes > SLOT_BYTES:
            buckets.append([])
            end = 0
        buckets[-1].append((spec, 0, end, spec.nbytes))
        end = align_up(end + spec.nbytes)
    return buckets


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(llm: Any, what: str, config: Any, folder: Path, transports: Sequence[str], rounds: int) -> list[Row]:
    """All rows."""
    shapes = dict(names_of(config))
    rows = list(llm.collective_rpc(lambda worker: _apply(worker, what, shapes, config, folder, rounds))[0])
    (attached,) = llm.collective_rpc("ckpt_transport_attach")
    assert not attached["error"], attached["error"]
    source = Peer(run_source, shapes, attached["address"])

    def bring(transport: str, version: int, times: int) -> Brought:
        found: Brought = source.call("bring", transport, version, times)
        for seconds, told in zip(found.updates, found.apply_summary, strict=True):
            console.print(f"  {transport}: {seconds * 1e3:.0f} ms: {told}")
        return found

    bring(transports[0], 1, 1)
    (loaded,) = llm.collective_rpc(_copies)
    for transport in transports:
        then = bring(transport, 2, rounds + 1)
        bring(transport, 1, 1)
        (same,) = llm.collective_rpc(partial(_same, copies=loaded))
        assert same, "weights are not what the loader left"
        taken, detail = median(then.updates[1:]), f"first {then.updates[0]:.2f} s"
        rows.append(Row(f"{transport}, {what}: update", taken, "a second", "", detail))
        if then.limits:
            limit = median(then.limits[1:])
            detail = f"update {taken * 1e3:.0f} ms, limit {limit * 1e3:.0f} ms"
            name = f"{transport}, {what}: update"
            rows.append(Row(name, limit / taken, "pinned host to device", f">={SHARE}", detail))
    source.stop()
    return rows


def _copies(worker: Any) -> list[torch.Tensor]:
    """Of all parameters."""
    return [parameter.detach().clone() for parameter in worker.model_runner.get_model().parameters()]


def _same(worker: Any, copies: Sequence[torch.Tensor]) -> bool:
    """Whether all parameters are as the copies, bit by bit."""
    parameters = worker.model_runner.get_model().parameters()
    return all(
        torch.equal(one.detach().reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
        for one, other in zip(parameters, copies, strict=True)
    )


def _apply(worker: Any, what: str, shapes: Shapes, config: Any, folder: Path, rounds: int) -> list[Row]:
    measured = Measured(worker, config, folder)
    measured.reload()
    loader = median(measured.reload() for _ in range(rounds))
    copied = median(measured.copies() for _ in range(rounds))
    del measured
    applied = Applied(worker, shapes)
    first = applied.once()
    console.print(f"  first: {first:.3f} s: {applied.engine.apply_summary}")
    once = []
    for _ in range(rounds + 1):
        once.append(applied.once())
        console.print(f"  {once[-1] * 1e3:.1f} ms: {applied.engine.apply_summary}")
    taken = median(once[1:])
    count = f"{len(shapes):,} tensors, {size(shapes) / 1e9:.1f} GB"
    return [
        Row(f"{what}: apply", taken, "a second", f"<={LIMIT_SECONDS}", f"{count}; first {first:.2f} s"),
        Row(f"{what}: apply", taken / copied, "a plain copy on the device", "", f"copy {copied * 1e3:.0f} ms"),
        Row(f"{what}: apply", taken / loader, "the loader", "", f"loader {loader * 1e3:.0f} ms"),
    ]


def main(
    model: Annotated[str, typer.Option(help="dense or mixture.")] = "mixture",
    mode: Annotated[str, typer.Option(help=f"bf16, or one that quantizes: {', '.join(MODES)}.")] = "bf16",
    layers: Annotated[int | None, typer.Option(help="By default as many as the real model, or half of them.")] = None,
    transport: Annotated[list[str] | None, typer.Option(help="By default shm, and on a GPU cuda_ipc too.")] = None,
    rounds: Annotated[int, typer.Option(help="Repetitions.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Measure applying, and whole updates."""
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("CKPT_TRANSPORT_MEMORY_BUDGET", "2GiB")  # the first update keeps a whole layer
    assert mode == "bf16" or not MODES[mode].checkpoint, "only modes that quantize BF16 weights"
    transports = transport or (["cuda_ipc", "shm"] if torch.cuda.is_available() else ["shm"])
    with tempfile.TemporaryDirectory() as scratch:
        llm, config = start(Path(scratch), model, mode, layers, worker_extension_cls=EXTENSION)
        rows = measure(llm, f"{model}, {mode}", config, Path(scratch), transports, rounds)
    report(rows, json)


if __name__ == "__main__":
    typer.run(main)
