"""Measures what the control plane costs as sinks grow in number: per bucket, and per phase.

Every sink is a real one, with a module of its own; several share a process. Buckets are so small that their bytes take
next to nothing. What the source pays for a bucket is its own processor time, of all threads, between the first and the
last stage of its timeline. Phases are timed by the caller's wall clock, and that of the second update counts: plan and
routes are known then. All sinks share the cores of this machine with the source. Usage:
``python -m benchmarks.control_scale --sinks 64``.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console

from benchmarks._crowd import Crowd, crowd
from benchmarks._report import Row, report
from benchmarks._sinks import tensors
from ckpt_transport import Config, ParameterServer, Report
from ckpt_transport.execution import now

BUCKET_BYTES = 64 << 10
BUCKETS = 100
NBYTES = BUCKET_BYTES * BUCKETS
PER_BUCKET = {2: 0.1e-3, 16: 0.2e-3, 64: 0.2e-3, 256: 0.3e-3}
PHASES = {64: 0.15, 256: 0.5}
FIRST = {64: 0.5}
SAMPLE_SECONDS = 0.002
console = Console(stderr=True)


class ProcessorClock:
    """Knows what processor time this process had used at any moment."""

    def __init__(self) -> None:
        self._at: list[float] = []
        self._used: list[float] = []

    @contextmanager
    def sampling(self) -> Iterator[None]:
        over = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(over,), daemon=True)
        sampler.start()
        try:
            yield
        finally:
            over.set()
            sampler.join()

    def _sample(self, over: threading.Event) -> None:
        while not over.wait(SAMPLE_SECONDS):
            self._at.append(now())
            self._used.append(time.process_time())

    def between(self, start: float, end: float) -> float:
        """Seconds of processor time from one moment to another."""
        return self._until(end) - self._until(start)

    def _until(self, moment: float) -> float:
        after = min(max(bisect_right(self._at, moment), 1), len(self._at) - 1)
        before = after - 1
        part = (moment - self._at[before]) / max(self._at[after] - self._at[before], 1e-9)
        return self._used[before] + min(max(part, 0.0), 1.0) * (self._used[after] - self._used[before])


def _per_bucket(done: Report, clock: ProcessorClock) -> float:
    """Seconds of processor time that the source has used for each bucket."""
    start = min(event.start for event in done.timeline)
    end = max(event.end for event in done.timeline)
    return clock.between(start, end) / len(done.plan.buckets)


def _updates(running: Crowd, transport: str, updates: int) -> Iterator[tuple[Report, float]]:
    """Reports of some updates, and what the source has used for each bucket."""
    settings = Config.load(
        transport=transport,
        bucket_bytes=BUCKET_BYTES,
        ring_depth=1,  # what is read where it lies comes in buckets as long as a ring
        heartbeat_timeout=60.0,
        join_timeout=60.0,
    )
    with ParameterServer(settings) as server:
        for number in range(updates):
            name, value = f"step-{number}", float(number + 1)
            server.register(name, tensors=tensors(NBYTES, value, BUCKET_BYTES))
            clock = ProcessorClock()
            with clock.sampling():
                done = server.update(name, running.addresses)
            assert done is not None
            running.check(name, value)
            server.unregister(name)
            yield done, _per_bucket(done, clock)


def _but_run(done: Report) -> float:
    return sum(seconds for phase, seconds in done.phases.items() if phase != "run")


def measure_sinks(count: int, transport: str = "shm", updates: int = 6) -> list[Row]:
    """One crowd: what a bucket costs the source, and the phases of the first and later updates."""
    with crowd(count, NBYTES, BUCKET_BYTES) as running:
        done = list(_updates(running, transport, updates))
    for number, (each, used) in enumerate(done):
        phases = ", ".join(f"{phase} {seconds * 1e3:.0f}" for phase, seconds in each.phases.items())
        what = f"{count} sinks, {transport}, update {number}, {len(each.plan.buckets)} buckets"
        console.print(f"{what}: {used * 1e6:.0f} µs per bucket; ms: {phases}", soft_wrap=True)
    name = f"{count} sinks over {transport}"
    used = median(per_bucket for _, per_bucket in done[1:])
    later = median(_but_run(each) for each, _ in done[1:])
    first = sum(done[0][0].phases[phase] for phase in ("agree", "connect"))
    rows = [_row(f"the source's processor time per bucket, {name}", used, PER_BUCKET.get(count))]
    rows.append(_row(f"all phases but run, from the second update on, {name}", later, PHASES.get(count)))
    rows.append(_row(f"agree and connect of the first update, {name}", first, FIRST.get(count)))
    return rows


def _row(name: str, seconds: float, target: float | None) -> Row:
    against, aim = (f"{target * 1e3:g} ms", "<=1.0") if target else ("1 ms", "")
    return Row(name, seconds / (target or 1e-3), against, aim, f"{seconds * 1e3:.3g} ms")


def measure(counts: Sequence[int] = (2, 16, 64)) -> list[Row]:
    """Over ``shm``, as many sinks as two cores can have in seconds."""
    return [row for count in counts for row in measure_sinks(count)]


def main(
    sinks: Annotated[list[int] | None, typer.Option(help="How many sinks; may be given several times.")] = None,
    transport: Annotated[str, typer.Option(help="The transport to use.")] = "shm",
    updates: Annotated[int, typer.Option(help="How many updates of each crowd.", min=2)] = 6,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Measure what control costs as sinks grow in number."""
    report([row for count in sinks or (2, 16, 64) for row in measure_sinks(count, transport, updates)], json)


if __name__ == "__main__":
    typer.run(main)
