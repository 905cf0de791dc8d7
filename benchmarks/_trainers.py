"""Gives orders to the ranks of a trainer, and to whom else takes part in an update of the end-to-end benchmark."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._brought import Variant
from benchmarks._gpu_worker import Peer, peers
from benchmarks._models import Shapes
from benchmarks._trainer import Timed, run_trainer


class Orders(NamedTuple):
    """What a trainer is told, by the names of methods of :class:`~benchmarks._trainer.Trainer`.

    Attributes:
        where: it makes its weights, on its ``device`` or the ``host``; empty where it has them already.
        warm_up: before its first update; empty for nothing.
        update: to bring a version.
        limit: to copy as many bytes over the same link.
    """

    where: str
    warm_up: str
    update: str
    limit: str


LENDS = Orders("device", "lend_and_warm_up", "lend_and_update", "copy_held")
POOLS = Orders("host", "warm_up", "update", "copy_pool")
JOINS = Orders("", "", "update_p2p", "copy_pool")


@dataclass(frozen=True)
class Trainers:
    """The ranks of a trainer that bring versions to workers.

    Attributes:
        ranks: their processes; the first leads.
        orders: what they are told.
        shapes: of what they have together.
        addresses: of the workers.
        gpus: of the workers.
        parts: which part of a version a worker needs, as one of so many.
    """

    ranks: Sequence[Peer]
    orders: Orders
    shapes: Shapes
    addresses: Sequence[str]
    gpus: Sequence[int]
    parts: int = 1

    def have(self, version: int) -> None:
        """Take a version in, as far as that is no part of an update."""
        if self.orders.where:
            ask_all(self.ranks, "have", self.shapes, version, self.orders.where)
        if self.orders.where == "host":
            ask_all(self.ranks, "register")

    def warm_up(self) -> Timed | None:
        """Do before the first update what can be done."""
        if not self.orders.warm_up:
            return None
        timed: Timed = ask_all(self.ranks, self.orders.warm_up, self.addresses)[0]
        return timed

    def update(self) -> Timed:
        """Bring what they have. Rank 0 leads, and has the report."""
        timed: Timed = ask_all(self.ranks, self.orders.update, self.addresses)[0]
        return timed

    def counted(self, rounds: int) -> tuple[list[Timed], list[float]]:
        """Updates that count, and what plain copies took before each."""
        then, limits = [], []
        for _ in range(rounds):
            limits.append(self._limit())
            then.append(self.update())
        return then, limits

    def _limit(self) -> float:
        """Seconds in which each rank copies as many bytes as it brings, all at once, to the next GPU."""
        for rank, trainer in enumerate(self.ranks):
            trainer.ask(self.orders.limit, self.gpus[(rank + 1) % len(self.gpus)], self.parts)
        return max(float(trainer.answer()) for trainer in self.ranks)


def trainer_ranks(device: str, gpus: Sequence[int]) -> AbstractContextManager[list[Peer]]:
    """The processes of a trainer's ranks, with one on each of these GPUs."""
    return peers([(run_trainer, rank, len(gpus), place(device, gpu)) for rank, gpu in enumerate(gpus)])


@contextlib.contextmanager
def opened(ranks: Sequence[Peer], variant: Variant) -> Iterator[None]:
    """They have these settings meanwhile, and nothing that they have taken in before."""
    with tempfile.TemporaryDirectory() as folder:
        ask_all(ranks, "open", variant.transport, f"ipc://{Path(folder, 'coordinator')}", variant.commit)
        yield


def ask_all(peers: Sequence[Peer], *order: object) -> list[Any]:
    """Have all of them do something at the same time."""
    for peer in reversed(peers):
        peer.ask(*order)
    return [peer.answer() for peer in peers]


def place(device: str, gpu: int) -> str:
    """A device of that kind, as torch names it."""
    return "cpu" if device == "cpu" else f"{device}:{gpu}"
