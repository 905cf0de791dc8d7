"""Measures one situation: a trainer's ranks bring versions to workers, in each way that is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import _checkpoint_engine
from benchmarks._attempts import Attempts, console
from benchmarks._brought import Brought, Extra, Variant, against_named
from benchmarks._gpu_worker import GpuMemory, Peer, peers, run_worker
from benchmarks._models import Shapes, size
from benchmarks._row import Row
from benchmarks._trace import merge
from benchmarks._trainers import Orders, Trainers, ask_all, opened, place, trainer_ranks


@dataclass(frozen=True)
class Situation:
    """Who brings what to whom.

    Attributes:
        title: what the rows are called.
        trainers, workers: the GPU of each.
        orders: what trainers are told.
        variants: what is measured, each by itself.
        limit: what the limit of those orders is, in words.
        target: for the time of an update over that limit.
        beside_checkpoint_engine: the target for the time of an update over that of checkpoint-engine; empty where that
            is not measured.
        worker: for each number, what runs in the process of that worker; by default it has all of the weights.
    """

    title: str
    shapes: Shapes
    trainers: Sequence[int]
    workers: Sequence[int]
    orders: Orders
    variants: Sequence[Variant]
    limit: str
    target: str
    beside_checkpoint_engine: str = ""
    worker: Callable[[int], Any] = lambda number: run_worker

    @property
    def gpus(self) -> int:
        """How many it needs."""
        return 1 + max(*self.trainers, *self.workers)


def measure(situation: Situation, device: str, rounds: int, attempts: Attempts) -> Iterator[Row]:
    """A row for each variant, and one for ``auto`` against the best by name."""
    console.print(f"{in_words(situation)} ...")
    found: dict[Variant, Brought] = {}
    with workers_of(situation, device) as (workers, addresses), trainer_ranks(device, situation.trainers) as ranks:
        trainers = Trainers(ranks, situation.orders, situation.shapes, addresses, situation.workers)
        for version, variant in enumerate(situation.variants, 1):
            rows = _variant(situation, trainers, workers, variant, version, rounds, found)
            yield from attempts.rows(f"{situation.title}: {variant}", rows)
        if situation.beside_checkpoint_engine:
            rows = _beside_checkpoint_engine(situation, workers, found, rounds)
            yield from attempts.rows(f"{situation.title}: checkpoint-engine", rows)
    yield from against_named(situation.title, found)


def _variant(
    situation: Situation,
    trainers: Trainers,
    workers: Sequence[Peer],
    variant: Variant,
    version: int,
    rounds: int,
    found: dict[Variant, Brought],
) -> Iterator[Row]:
    with opened(trainers.ranks, variant):
        brought = bring(trainers, workers, version, rounds)
    console.print(f"  {variant}: {brought.says}")
    found[variant] = brought
    yield brought.row(f"{situation.title}: {variant}", situation.limit, situation.target)


def bring(trainers: Trainers, workers: Sequence[Peer], version: int, rounds: int) -> Brought:
    """Have them bring a version often enough; every tensor of every worker is compared at the end."""
    trainers.have(version)
    gpu_memory = GpuMemory() if torch.cuda.is_available() else contextlib.nullcontext()
    with gpu_memory as memory:
        warmed, first = trainers.warm_up(), trainers.update()
        at_first = 0 if memory is None else memory.later()
        trainers.update()
    then, limits = trainers.counted(rounds)
    compare(workers, version)
    extra = None if memory is None else Extra(at_first, memory.extra)
    return Brought(warmed, first, then, limits, len(trainers.shapes) * len(workers), extra)


def compare(workers: Sequence[Peer], version: int) -> None:
    """See that all of them have every tensor of a version."""
    for number, worker in enumerate(workers):
        wrong = worker.call("wrong", version)
        assert not wrong, f"worker {number}: {len(wrong)} tensors are wrong, the first {wrong[0]}"


def trace(situation: Situation, device: str, path: Path) -> None:
    """Write what happens in an update of lent weights, of which all kinds were seen before, and on the worker's GPU."""
    console.print(f"{in_words(situation)}: a trace of {situation.variants[-1]} ...")
    with workers_of(situation, device) as (workers, addresses), trainer_ranks(device, situation.trainers) as ranks:
        trainers = Trainers(ranks, situation.orders, situation.shapes, addresses, situation.workers)
        with opened(ranks, situation.variants[-1]):
            bring(trainers, workers, 1, rounds=1)
            workers[0].call("profile")
            zero, *_ = ask_all(ranks, "lend_and_trace", addresses, path)
            merge(path, workers[0].call("profiled"), zero)
        compare(workers, 1)


def _beside_checkpoint_engine(
    situation: Situation, workers: Sequence[Peer], found: Mapping[Variant, Brought], rounds: int
) -> Iterator[Row]:
    """The same workers, updated by checkpoint-engine."""
    if missing := _checkpoint_engine.missing():
        console.print(f"{situation.title}: checkpoint-engine: not run: {missing}")
        return
    theirs = _checkpoint_engine.measure(situation.shapes, workers, rounds)
    console.print(f"  {theirs}")
    for variant, ours in found.items():
        yield theirs.row(f"{situation.title}: {variant}", ours, situation.beside_checkpoint_engine)


def in_words(situation: Situation) -> str:
    return f"{situation.title}: {len(situation.shapes):,} tensors, {size(situation.shapes) / 1e9:.2f} GB"


@contextlib.contextmanager
def workers_of(situation: Situation, device: str) -> Iterator[tuple[list[Peer], list[str]]]:
    """The processes of the workers, and where they listen."""
    calls = [(situation.worker(n), situation.shapes, place(device, gpu)) for n, gpu in enumerate(situation.workers)]
    with peers(calls) as workers:
        yield workers, [worker.answer() for worker in workers]
