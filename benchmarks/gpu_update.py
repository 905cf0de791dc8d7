"""Measures updates of engines on a GPU against checkpoint-engine, and nccl against a bare broadcast.

One source process, one worker that copies into its parameters, both on one GPU; versions of synthetic weights with the
shapes of Qwen3-8B and of half of Qwen3-30B-A3B. checkpoint-engine brings weights of the same shapes to the same worker.
After each kind of update every tensor in the worker is compared. What an update takes against the link that it crosses
is in :mod:`benchmarks.end_to_end`. Needs a GPU, 100 GiB of memory, checkpoint-engine, and for ranks that share the GPU
NCCL 2.30 with NCCL_MULTI_RANK_GPU_ENABLE=1. Usage: ``python -m benchmarks.gpu_update``.
"""

from __future__ import annotations

import enum
import importlib.util
import os
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks._gpu_worker import (
    GpuMemory,
    Peer,
    run_bare_broadcast,
    run_broadcast_with_copies,
    run_checkpoint_engine,
    run_worker,
)
from benchmarks._models import Shapes, dense, mixture, size, tensors
from benchmarks._report import Row, report
from ckpt_transport import Config, ParameterServer

SLOT_BYTES = 64 << 20
console = Console(stderr=True)


class Part(enum.StrEnum):
    """What can be measured by itself."""

    DENSE = "dense"
    NCCL = "nccl"
    MIXTURE = "mixture"
    LARGE = "large"


def measure(parts: Collection[Part] = tuple(Part), rounds: int = 5, trace: Path | None = None) -> list[Row]:
    """All rows of these parts."""
    measured: dict[Part, Callable[[], list[Row]]] = {
        Part.DENSE: lambda: _compare("dense 8B", dense(), rounds, peer=0.32, trace=trace),
        Part.NCCL: lambda: _broadcasts(dense(), rounds),
        Part.MIXTURE: lambda: _compare("mixture 15B", mixture(), rounds, peer=0.60),
        Part.LARGE: lambda: _compare("dense 40 GB", dense(97), rounds, peer=1.0),
    }
    return [row for part, rows in measured.items() if part in parts for row in rows()]


def _compare(what: str, shapes: Shapes, rounds: int, peer: float, trace: Path | None = None) -> list[Row]:
    console.print(f"{what}: {len(shapes)} tensors, {size(shapes) / 1e9:.1f} GB")
    if importlib.util.find_spec("checkpoint_engine") is None:
        console.print("  not run: needs checkpoint-engine 0.4.2")
        return []
    worker = Peer(run_worker, shapes, "cuda:0")
    address = worker.answer()
    taken = {transport: _ours(transport, shapes, address, worker, rounds, trace) for transport in ("cuda_ipc", "shm")}
    theirs, kept, extra = _checkpoint_engine(shapes, worker, rounds)
    worker.stop()
    rows = []
    for transport, seconds in taken.items():
        name, against = f"{transport}, {what}: time", "checkpoint-engine 0.4.2"
        detail = (
            f"{seconds * 1e3:.0f} ms, theirs {theirs * 1e3:.0f} ms, {extra / (1 << 30):.1f} GiB of extra GPU memory"
        )
        rows += [
            Row(name, seconds / theirs, against, f"<={peer}", detail),
            Row(name, seconds / kept, f"{against}, its group kept", "", f"theirs {kept * 1e3:.0f} ms"),
        ]
    return rows


def _ours(transport: str, shapes: Shapes, address: str, worker: Peer, rounds: int, trace: Path | None) -> float:
    """Seconds of an update, the median; all but the first are counted."""
    taken = []
    with ParameterServer(Config.load(transport=transport), rank=0, world_size=1) as server:
        server.register("v1", tensors=tensors(shapes, 1))
        for _ in range(rounds + 1):
            began = time.perf_counter()
            done = server.update("v1", [address])
            taken.append(time.perf_counter() - began)
        _check(worker, 1)
        assert done is not None
        if trace is not None:
            done.write_trace(trace)
    return median(taken[1:])


def _check(worker: Peer, version: int) -> None:
    wrong = worker.call("wrong", version)
    assert not wrong, f"{len(wrong)} tensors are wrong, the first {wrong[0]}"


def _checkpoint_engine(shapes: Shapes, worker: Peer, rounds: int) -> tuple[float, float, int]:
    """The seconds of an update at its defaults, and with its process group kept between updates and the better of two
    bucket sizes; and bytes of extra GPU memory at its defaults.

    By default, which its documentation recommends, it makes a process group for each update and destroys it after.
    """
    theirs = Peer(run_checkpoint_engine, shapes)
    registered = theirs.call("register", 3)
    taken, extra = [], 0
    for gib, setting in ((1, "group kept"), (8, "group kept"), (8, "defaults")):
        theirs.call("bucket", gib)
        if setting == "defaults":
            theirs.call("defaults")
        seconds = []
        with GpuMemory() as memory:
            for _ in range(rounds + 1):
                theirs.ask("update")
                worker.ask("checkpoint-engine", theirs.answer())
                seconds.append(float(theirs.answer()))
                assert worker.answer() == "done"
        extra = memory.extra
        taken.append(median(seconds[1:]))
        console.print(f"  checkpoint-engine, {gib} GiB, {setting}: {taken[-1]:.3f} s, registration {registered:.1f} s")
    _check(worker, 3)
    theirs.stop()
    *kept, default = taken
    return default, min(kept), extra


def _broadcasts(shapes: Shapes, rounds: int) -> list[Row]:
    """NCCL with several ranks on one GPU, and with one rank on each of several."""
    gpus = torch.cuda.device_count()
    places: dict[str, Sequence[int]] = {}
    if os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") == "1":
        places = {"2 ranks on one GPU": (0, 0), "4 ranks on one GPU": (0, 0, 0, 0)}
    if gpus > 1:
        places |= {f"{gpus} ranks on {gpus} GPUs": range(gpus)}
    return [row for what, where in places.items() for row in _broadcast(shapes, rounds, what, where)]


def _broadcast(shapes: Shapes, rounds: int, what: str, gpus: Sequence[int]) -> list[Row]:
    """From the first of ``gpus`` to the others: by NCCL alone, and as updates from GPU and from host memory."""
    nbytes = size(shapes)
    alone = _without_control(run_bare_broadcast, nbytes, rounds, gpus)
    copied = _without_control(run_broadcast_with_copies, nbytes, rounds, gpus)
    workers = [Peer(run_worker, shapes, f"cuda:{gpu}") for gpu in gpus[1:]]
    addresses = [worker.answer() for worker in workers]
    rows = []
    torch.cuda.set_device(gpus[0])
    with ParameterServer(Config.load(transport="nccl"), rank=0, world_size=1) as server:
        on_gpu = {name: tensor.cuda().contiguous() for name, tensor in tensors(shapes, 1).items()}
        server.lend("v1", on_gpu)
        del on_gpu
        for version, where, target in ((1, "weights on the GPU", ">=0.9"), (2, "weights on the host", "")):
            if version == 2:
                server.unregister("v1")
                torch.cuda.empty_cache()
                server.register("v2", tensors=tensors(shapes, 2))
            updates = []
            for _ in range(rounds + 1):
                done = server.update(f"v{version}", addresses)
                assert done is not None
                updates.append(done.seconds)
                phases = done.phases
            for worker in workers:
                _check(worker, version)
            detail = (
                f"update {median(updates[1:]) * 1e3:.0f} ms (first {updates[0] * 1e3:.0f}), "
                f"broadcast {alone * 1e3:.0f} ms = {nbytes / alone / 1e9:.0f} GB/s, with copies {copied * 1e3:.0f} ms"
            )
            name, taken = f"nccl, {what}, {where}", median(updates[1:])
            rows.append(Row(name, alone / taken, "a bare broadcast", target, detail))
            rows.append(Row(name, copied / taken, "a broadcast with copies, without control", "", detail))
            console.print(f"  nccl, {what}, {where}: {detail}")
            console.print("   ", ", ".join(f"{phase} {seconds * 1e3:.1f}" for phase, seconds in phases.items()))
    for worker in workers:
        worker.stop()
    return rows


def _without_control(run: Callable[..., None], nbytes: int, rounds: int, gpus: Sequence[int]) -> float:
    """Seconds of NCCL with nothing of ours around it, the median."""
    from ckpt_transport_nccl.library import unique_id

    identity = unique_id()
    peers = [Peer(run, rank, len(gpus), gpu, nbytes, SLOT_BYTES, identity) for rank, gpu in enumerate(gpus)]
    for peer in peers:
        assert peer.answer() == "ready"
    seconds = []
    for _ in range(rounds + 1):
        for peer in peers:
            peer.ask("broadcast")
        seconds.append(max(float(peer.answer()) for peer in peers))
    for peer in peers:
        peer.stop()
    return median(seconds[1:])


def main(
    part: Annotated[list[Part] | None, typer.Option(help="What to measure; by default everything.")] = None,
    rounds: Annotated[int, typer.Option(help="Repetitions.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Write the timeline of an update to this file.")] = None,
) -> None:
    """Update engines on one GPU, and compare with what the machine and checkpoint-engine can do."""
    report(measure(part or tuple(Part), rounds, trace), json)


if __name__ == "__main__":
    typer.run(main)
