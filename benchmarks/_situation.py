"""Measures one situation: a trainer's ranks bring versions to workers, by each transport that is asked for."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from rich.console import Console

from benchmarks._gpu_worker import GpuMemory, Peer, run_worker
from benchmarks._models import Shapes, size
from benchmarks._row import Row
from benchmarks._trainer import Timed, milliseconds, run_trainer

AUTO = "auto"
console = Console(stderr=True)


@dataclass(frozen=True)
class Situation:
    """Who brings what to whom.

    Attributes:
        title: what the rows are called.
        trainers, workers: the GPU of each.
        lent: whether the weights are on the trainers' GPUs and new at each update; else they are in its pool.
        transports: what is measured, each by itself; the first is what the target is for.
        limit: what :meth:`Trainer.link` measures, in words.
        target: for the time of an update over that limit.
        order: which of the orders of :class:`~benchmarks._trainer.Trainer` is an update.
        commit: how the version is taken, as the setting.
        worker: for each number, what runs in the process of that worker; by default it has all of the weights.
    """

    title: str
    shapes: Shapes
    trainers: Sequence[int]
    workers: Sequence[int]
    lent: bool
    transports: Sequence[str]
    limit: str
    target: str
    order: str = ""
    commit: str = "auto"
    worker: Callable[[int], Any] = lambda number: run_worker

    @property
    def gpus(self) -> int:
        """How many it needs."""
        return 1 + max(*self.trainers, *self.workers)


@dataclass(frozen=True)
class Brought:
    """What one transport took: the first update, later ones, and the limit between them."""

    first: Timed
    then: Sequence[Timed]
    limits: Sequence[float]
    extra: int

    @property
    def wall(self) -> float:
        return median(timed.wall for timed in self.then)

    @property
    def limit(self) -> float:
        return median(self.limits)

    @property
    def says(self) -> str:
        last = self.then[-1]
        held = median(timed.held for timed in self.then)
        return (
            f"{milliseconds(self.wall)}, limit {milliseconds(self.limit)}; held {milliseconds(held)}; "
            f"first {milliseconds(self.first.wall)}, held {milliseconds(self.first.held)} ({self.first.said}); "
            f"{self.extra / (1 << 30):.2f} GiB of GPU memory; {', '.join(set(last.ways))}: {last.said}; run was "
            f"predicted as {milliseconds(last.predicted)}"
        )


def brought(situation: Situation, device: str, rounds: int) -> dict[str, Brought]:
    """What each transport took."""
    nbytes = size(situation.shapes)
    console.print(f"{situation.title}: {len(situation.shapes):,} tensors, {nbytes / 1e9:.2f} GB")
    found: dict[str, Brought] = {}
    with workers_of(situation, device) as (workers, addresses):
        for version, transport in enumerate(situation.transports, 1):
            with trainers_of(situation, device, transport, version) as trainers:
                found[transport] = _bring(situation, trainers, addresses, rounds)
            console.print(f"  {transport}: {found[transport].says}")
            for worker in workers:
                wrong = worker.call("wrong", version)
                assert not wrong, f"{len(wrong)} tensors are wrong, the first {wrong[0]}"
    return found


def measure(situation: Situation, device: str, rounds: int) -> list[Row]:
    """A row for each transport, and one for ``auto`` against the best by name."""
    found = brought(situation, device, rounds)
    rows = [
        Row(
            f"{situation.title}: {transport}",
            took.wall / took.limit,
            situation.limit,
            situation.target if transport == situation.transports[0] else "",
            took.says,
        )
        for transport, took in found.items()
    ]
    named = {transport: took.wall for transport, took in found.items() if transport != AUTO}
    if AUTO in found and named:
        best = min(named, key=lambda transport: named[transport])
        ratio, detail = found[AUTO].wall / named[best], f"{milliseconds(found[AUTO].wall)}, {milliseconds(named[best])}"
        rows.append(Row(f"{situation.title}: auto", ratio, f"{best} by name", "<=1.05", detail))
    return rows


def _bring(situation: Situation, trainers: Sequence[Peer], addresses: Sequence[str], rounds: int) -> Brought:
    order = situation.order or ("lend_and_update" if situation.lent else "update")
    together = partial(ask_all, trainers)

    def update() -> Timed:
        """Rank 0 leads, and has the report."""
        timed: Timed = together(order, addresses)[0]
        return timed

    if not situation.lent:
        together("register")
    gpu_memory = GpuMemory() if torch.cuda.is_available() else contextlib.nullcontext()
    with gpu_memory as memory:
        first = update()
    update()
    then, limits = [], []
    for _ in range(rounds):
        limits.append(max(links(trainers, situation.workers)))
        then.append(update())
    return Brought(first, then, limits, memory.extra if memory is not None else 0)


def links(trainers: Sequence[Peer], gpus: Sequence[int], parts: int = 1) -> list[float]:
    """Have each trainer copy as many bytes as it brings to one of so many ranks, at the same time, to the next GPU."""
    for rank, trainer in enumerate(trainers):
        trainer.ask("link", gpus[(rank + 1) % len(gpus)], parts)
    return [trainer.answer() for trainer in trainers]


def ask_all(peers: Sequence[Peer], *order: object) -> list[Any]:
    """Have all of them do something at the same time."""
    for peer in reversed(peers):
        peer.ask(*order)
    return [peer.answer() for peer in peers]


@contextlib.contextmanager
def workers_of(situation: Situation, device: str) -> Iterator[tuple[list[Peer], list[str]]]:
    workers = [
        Peer(situation.worker(number), situation.shapes, _place(device, gpu))
        for number, gpu in enumerate(situation.workers)
    ]
    try:
        yield workers, [worker.answer() for worker in workers]
    finally:
        for worker in workers:
            worker.stop()


@contextlib.contextmanager
def trainers_of(situation: Situation, device: str, transport: str, version: int) -> Iterator[list[Peer]]:
    """The ranks, with their parts of the version."""
    size = len(situation.trainers)
    with tempfile.TemporaryDirectory() as folder:
        trainers = [Peer(run_trainer, rank, size, _place(device, gpu)) for rank, gpu in enumerate(situation.trainers)]
        try:
            ask_all(trainers, "open", transport, f"ipc://{folder}/coordinator", situation.commit)
            ask_all(trainers, "have", situation.shapes, version, "device" if situation.lent else "host")
            yield trainers
        finally:
            for trainer in trainers:
                trainer.stop()


def _place(device: str, gpu: int) -> str:
    return "cpu" if device == "cpu" else f"{device}:{gpu}"
