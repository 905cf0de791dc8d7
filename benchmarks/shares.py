"""Counts the bytes that go to each of eight ranks of a vLLM when each is sent what its loader takes (0.16 of all).

The loader of every rank of a real vLLM model (Qwen3-30B-A3B with expert parallelism, Qwen3-8B) is recorded in a process
of its own, without weights and without the other ranks; then a version is planned for all of them, and proved. Nothing
is moved. Usage: ``python -m benchmarks.shares``, where vLLM is; it needs neither GPU nor 60 GB of memory.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from benchmarks._lone_rank import specs_of
from benchmarks._report import Row, report
from benchmarks._vllm_engine import write_config
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import (
    Extent,
    Manifest,
    PlacedTensor,
    Plan,
    RankInfo,
    Role,
    Settings,
    Share,
    TensorSpec,
    Topology,
    explain,
    plan,
    verify,
)
from ckpt_transport.transports import registry

SIZE = 8
AT_ONCE = 2
BUDGET = 1 << 30
MODELS = {"mixture": (48, "Qwen3-30B-A3B, expert parallel", "<=0.16"), "dense": (36, "Qwen3-8B", "")}
console = Console(stderr=True)


def shares_of(folder: Path, *arguments: str) -> list[Share]:
    """What every rank needs."""

    def record(rank: int) -> Share:
        command = [sys.executable, "-m", "benchmarks._lone_rank", str(folder), str(rank), str(SIZE), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"rank {rank}: {done.stderr[-2000:]}")
        return msgspec.msgpack.decode((folder / f"{rank}.share").read_bytes(), type=Share)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(record, range(SIZE)))


def version_of(specs: list[TensorSpec]) -> Manifest:
    """All tensors in one pool."""
    placed, offset = [], 0
    for spec in specs:
        placed.append(PlacedTensor(spec, 0, offset, spec.nbytes))
        offset += spec.nbytes
    return Manifest("step-2", (Extent(0, offset, MemoryKind.SHARED),), tuple(placed))


def planned(version: Manifest, shares: list[Share], transport: str) -> tuple[Plan, float]:
    """A proved plan for one source and the ranks, and how many seconds that took."""
    sinks = (RankInfo(rank, Role.SINK, "engine", BUDGET, (transport,), share=rank - 1) for rank in range(1, SIZE + 1))
    fleet = Topology((RankInfo(0, Role.SOURCE, "trainer", BUDGET, (transport,)), *sinks), tuple(shares))
    began = time.perf_counter()
    made = plan(version, fleet, {transport: registry.load(transport).traits}, Settings(transport=transport))
    verify(made)
    return made, time.perf_counter() - began


def measure(model: str, transport: str) -> Row:
    """The largest share that any rank is sent."""
    layers, name, target = MODELS[model]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_config(folder, model, layers, "")
        began = time.perf_counter()
        shares = shares_of(folder, *(["--expert-parallel"] if model == "mixture" else []))
        recorded = time.perf_counter() - began
        version = version_of(specs_of(folder))
    brought, seconds = planned(version, shares, transport)
    console.print(explain(brought), soft_wrap=True)
    sent = brought.bytes_to
    total = sum(stage_bytes(brought))
    detail = (
        f"{version.nbytes / 1e9:.1f} GB, {len(version.tensors):,} tensors; ranks are sent "
        f"{min(sent.values()) / 1e9:.2f} to {max(sent.values()) / 1e9:.2f} GB, the source sends {total / 1e9:.1f} GB "
        f"and would send {SIZE * version.nbytes / 1e9:.0f} to each one by one; {len(brought.buckets):,} buckets in "
        f"{len(brought.receiver_sets)} receiver sets, planned and proved in {seconds:.2f} s; recording 8 loaders, "
        f"2 at a time, took {recorded:.0f} s with starting vLLM"
    )
    return Row(
        f"bytes to one of {SIZE} ranks over {transport}, {name}",
        max(sent.values()) / version.nbytes,
        "everything",
        target,
        detail,
    )


def stage_bytes(made: Plan) -> list[int]:
    """The bytes that the source sends of every bucket, once to each rank of its receiver set."""
    return [bucket.payload * len(made.receiver_sets[bucket.receiver_set]) for bucket in made.buckets]


def main(
    transport: Annotated[str, typer.Option(help="Its figures decide whether shares are worth it.")] = "mooncake",
    json: Annotated[Path, typer.Option(help="Write the rows to this file.")] = Path("build/shares.json"),
) -> None:
    """Record, plan, prove, and print one table."""
    report([measure(model, transport) for model in MODELS], json)


if __name__ == "__main__":
    typer.run(main)
