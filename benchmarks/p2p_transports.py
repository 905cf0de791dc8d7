"""Measures updates over the point-to-point transports against one big transfer by the library underneath.

Both run between the same two processes of one machine, one source and one sink, in turns. An update also copies every
byte from a slot into the parameters and commits; the bare transfer does nothing else. How long that copy takes by
itself is measured too, and with it a ceiling: no update can end before its transfer has, nor before the cores have done
all the work there is, of which the bare transfer's processor time is one part and the copy another.
Usage: ``python -m benchmarks.p2p_transports``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks._bare import BARE
from benchmarks._report import Row, report
from benchmarks._sinks import SinkProcess, ask_all, sinks, tensors
from ckpt_transport import Config, ParameterServer
from ckpt_transport.transports import registry

TARGET = ">=0.9"
AGAINST = {"nixl": ("nixl",), "mooncake": ("mooncake",), "ucx": ("ucx", "ucx without error handling")}


def measure(gib: float = 1.0, updates: int = 7, bucket_bytes: str = "", only: str = "") -> list[Row]:
    """Rows of all transports that can run here; of the others it is said why they cannot."""
    rows = []
    for name, libraries in AGAINST.items():
        if only not in ("", name):
            continue
        state = registry.available(name)
        if not state.ok:
            Console(stderr=True).print(f"{name} is left out: {state.reason}; {state.hint}", markup=False)
            continue
        nbytes = int(gib * (1 << 30))
        rows += [_compare(name, library, nbytes, updates, bucket_bytes) for library in libraries]
    return rows


def _compare(name: str, library: str, nbytes: int, updates: int, bucket_bytes: str) -> Row:
    settings = Config.load(transport=name, bucket_bytes=bucket_bytes or None)
    bare_times, bare_work, copies, update_times, work, runs, largest = [], [], [], [], [], [], 0
    with sinks(1, nbytes) as (sink,), ParameterServer(settings) as server:
        sink.ask("bare", library, nbytes)
        theirs = sink.answer()
        bare = BARE[library](torch.ones(nbytes, dtype=torch.uint8), False)
        sink.ask("connect", bare.address)
        bare.connect(theirs)
        sink.answer()
        ask_all([sink], "fill source")
        server.register("v", tensors={key: value.contiguous() for key, value in tensors(nbytes, 1.0).items()})
        for number in range(updates + 1):
            before, started = _work(sink), time.perf_counter()
            sink.ask("move")
            bare.move()
            sink.answer()
            bare_times.append(time.perf_counter() - started)
            bare_work.append(_work(sink) - before)
            copies.append(ask_all([sink], "copy"))
            before = _work(sink)
            done = server.update("v", [sink.address])
            assert done is not None, number
            work.append(_work(sink) - before)
            update_times.append(done.seconds)
            runs.append(done.phases["run"])
            largest = max(bucket.nbytes for bucket in done.plan.buckets)
        sink.ask("values")
        assert sink.answer() == ("v", {1.0})
    best, took, copy = median(bare_times[1:]), median(update_times[1:]), median(copies[1:])
    cores = os.cpu_count() or 1
    floor = max(best, (median(bare_work[1:]) + copy) / cores)
    return Row(
        name=f"{name} update, 1 source and 1 sink, {nbytes / (1 << 30):g} GiB",
        ratio=best / took,
        against=f"one transfer of the same bytes by {library}",
        target=TARGET,
        detail=(
            f"bare {best * 1e3:.0f} ms = {nbytes / best / 1e9:.2f} GB/s with {median(bare_work[1:]) * 1e3:.0f} ms of "
            f"processors, copy {copy * 1e3:.0f} ms, update {took * 1e3:.0f} ms (run {median(runs[1:]) * 1e3:.0f} ms) "
            f"with {median(work[1:]) * 1e3:.0f} ms of processors, "
            f"buckets of {largest >> 20} MiB; ceiling on {cores} cores {best / floor:.2f}"
        ),
    )


def _work(sink: SinkProcess) -> float:
    """Processor seconds of both processes, in all their threads."""
    sink.ask("processor")
    return float(sink.answer()) + time.process_time()


def main(
    gib: Annotated[float, typer.Option(help="Size of the weights.")] = 1.0,
    updates: Annotated[int, typer.Option(help="Repetitions.")] = 7,
    bucket_bytes: Annotated[str, typer.Option(help="Size of a bucket.")] = "",
    only: Annotated[str, typer.Option(help="Only this transport.")] = "",
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Update one sink over nixl, mooncake and ucx."""
    report(measure(gib, updates, bucket_bytes, only), json)


if __name__ == "__main__":
    typer.run(main)
