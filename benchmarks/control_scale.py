"""Measures what the control plane costs as sinks grow in number: per bucket, and per phase.

Every sink is a real one, with a module of its own; four share a process. Buckets are so small that their bytes take
next to nothing. What the source pays for a bucket is its own processor time, of all threads, between the first and the
last stage of its timeline; what it pays for a member is the rest of an update's. Phases are timed by the caller's wall
clock, and that of the second update counts: plan and routes are known then. All sinks share the cores of this machine
with the source, as they would not in a cluster: the processor time of both is printed, to tell them apart, and signs of
life are few. Usage:
``python -m benchmarks.control_scale --sinks 64``.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console

from benchmarks._crowd import HEARTBEAT, Crowd, crowd
from benchmarks._report import Row, report
from benchmarks._sinks import tensors
from ckpt_transport import Config, JoinError, ParameterServer, Report
from ckpt_transport.execution import now
from ckpt_transport.service.query import ask_versions

BUCKET_BYTES = 64 << 10
BUCKETS = 100
NBYTES = BUCKET_BYTES * BUCKETS
PER_BUCKET = {2: 0.1e-3, 16: 0.2e-3, 64: 0.2e-3, 256: 0.3e-3}
PHASES = {64: 0.15, 256: 0.5}
FIRST = {64: 0.5}
ASKED, VERSIONS = 4096, 2.0
SAMPLE_SECONDS = 0.002
console = Console(stderr=True)


class ProcessorClock:
    """Knows what processor time this process had used at any moment, without what it takes to look."""

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
            self._used.append(time.process_time() - time.thread_time())

    def between(self, start: float, end: float) -> float:
        """Seconds of processor time from one moment to another."""
        return self._until(end) - self._until(start)

    @property
    def total(self) -> float:
        """Seconds of processor time from the first look to the last."""
        return self._used[-1] - self._used[0]

    def _until(self, moment: float) -> float:
        after = min(max(bisect_right(self._at, moment), 1), len(self._at) - 1)
        before = after - 1
        part = (moment - self._at[before]) / max(self._at[after] - self._at[before], 1e-9)
        return self._used[before] + min(max(part, 0.0), 1.0) * (self._used[after] - self._used[before])


@dataclass(frozen=True)
class Measured:
    """One update, with seconds of processor time.

    Attributes:
        report: of the update.
        per_bucket: of the source, from the first stage to the last.
        but_run: of the source, for all the rest.
        sinks: of all sinks together.
    """

    report: Report
    per_bucket: float
    but_run: float
    sinks: float

    @property
    def seconds_but_run(self) -> float:
        """Of the wall clock, in all phases but run."""
        return sum(seconds for phase, seconds in self.report.phases.items() if phase != "run")


def _measured(done: Report, clock: ProcessorClock, sinks: float) -> Measured:
    start = min(event.start for event in done.timeline)
    end = max(event.end for event in done.timeline)
    run = clock.between(start, end)
    return Measured(done, run / len(done.plan.buckets), clock.total - run, sinks)


def _updates(running: Crowd, transport: str, updates: int) -> Iterator[Measured]:
    """Make some updates."""
    settings = Config.load(
        transport=transport,
        bucket_bytes=BUCKET_BYTES,
        ring_depth=1,  # what is read where it lies comes in buckets as long as a ring
        heartbeat_interval=HEARTBEAT,
        heartbeat_timeout=60.0,
        join_timeout=60.0,
    )
    with ParameterServer(settings) as server:
        for number in range(updates):
            name, value = f"step-{number}", float(number + 1)
            server.register(name, tensors=tensors(NBYTES, value, BUCKET_BYTES))
            clock, before = ProcessorClock(), running.used()
            with clock.sampling():
                done = server.update(name, running.addresses)
            assert done is not None
            sinks = running.used() - before
            running.check(name, value)
            server.unregister(name)
            yield _measured(done, clock, sinks)


def measure_sinks(count: int, transport: str = "shm", updates: int = 6) -> list[Row]:
    """One crowd: what a bucket costs the source, and the phases of the first and later updates."""
    with crowd(count, NBYTES, BUCKET_BYTES) as running:
        done = list(_updates(running, transport, updates))
    for number, each in enumerate(done):
        phases = ", ".join(f"{phase} {seconds * 1e3:.0f}" for phase, seconds in each.report.phases.items())
        what = f"{count} sinks, {transport}, update {number}, {len(each.report.plan.buckets)} buckets"
        used = f"source {each.per_bucket * 1e6:.0f} µs per bucket and {each.but_run * 1e3:.0f} ms besides"
        console.print(
            f"{what}: processor time: {used}, all sinks {each.sinks * 1e3:.0f} ms; ms: {phases}", soft_wrap=True
        )
    name = f"{count} sinks over {transport}"
    first = sum(done[0].report.phases[phase] for phase in ("agree", "connect"))
    per_bucket = median(each.per_bucket for each in done[1:])
    seconds = median(each.seconds_but_run for each in done[1:])
    source = median(each.but_run for each in done[1:]) / count
    sink = median(each.sinks for each in done[1:]) / count
    return [
        _row(f"the source's processor time per bucket, {name}", per_bucket, PER_BUCKET.get(count)),
        _row(f"all phases but run, from the second update on, {name}", seconds, PHASES.get(count)),
        _row(f"agree and connect of the first update, {name}", first, FIRST.get(count)),
        _row(f"the source's processor time per member in all phases but run, {name}", source, None),
        _row(f"a sink's processor time in an update, {name}", sink, None),
    ]


def measure_versions(asked: int = ASKED, count: int = 32) -> Row:
    """Asking a fleet for its versions: real sinks, each under many names, to each of which there is a connection."""
    with crowd(count, BUCKET_BYTES, BUCKET_BYTES) as running, TemporaryDirectory() as folder:
        names = []
        for number in range(asked):
            name = Path(folder, str(number))
            name.symlink_to(running.addresses[number % count].removeprefix("ipc://"))
            names.append(f"ipc://{name}")
        began = time.perf_counter()
        answers = ask_versions(names, timeout=60.0)
        seconds = time.perf_counter() - began
    if silent := [answer for answer in answers.values() if isinstance(answer, JoinError)]:
        raise silent[0]
    return _row(f"asking {asked:,} sinks for their version", seconds, VERSIONS)


def _row(name: str, seconds: float, target: float | None) -> Row:
    against, aim = (f"{target * 1e3:g} ms", "<=1.0") if target else ("1 ms", "")
    return Row(name, seconds / (target or 1e-3), against, aim, f"{seconds * 1e3:.3g} ms")


def measure(counts: Sequence[int] = (2, 16, 64)) -> list[Row]:
    """Over ``shm``, as many sinks as two cores can have in seconds."""
    return [*(row for count in counts for row in measure_sinks(count)), measure_versions()]


def main(
    sinks: Annotated[list[int] | None, typer.Option(help="How many sinks; may be given several times.")] = None,
    transport: Annotated[str, typer.Option(help="The transport to use.")] = "shm",
    updates: Annotated[int, typer.Option(help="How many updates of each crowd.", min=2)] = 6,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Measure what control costs as sinks grow in number."""
    if sinks:
        report([row for count in sinks for row in measure_sinks(count, transport, updates)], json)
    else:
        report(measure(), json)


if __name__ == "__main__":
    typer.run(main)
