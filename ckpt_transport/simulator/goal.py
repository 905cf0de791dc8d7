"""A plan as a schedule in GOAL, the text that LogGOPSim and ATLAHS simulate: what a rank does, and after what.

What :class:`~ckpt_transport.simulator.activities.Activities` knows of ranks is kept: the order in which they post,
fill and apply, slots and credit. How links are shared is not: a message has a size, and its network is the simulator's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import NamedTuple, TextIO

from ckpt_transport.errors import ConfigError
from ckpt_transport.memory import no_collections
from ckpt_transport.planning import Plan
from ckpt_transport.simulator.activities import Activities
from ckpt_transport.simulator.events import Activity
from ckpt_transport.simulator.wires import Wires
from ckpt_transport.simulator.world import SimulatedWorld

NANO = 1e9
NOTICE = 1
"""Bytes of a message that only says that something is done."""
PROCESSORS = {"transfers": 0, "fills": 1, "applies": 2}
"""The processor of a rank that stands for each of its threads."""


def write_goal(path: Path, plan: Plan, world: SimulatedWorld) -> None:
    """Write what ranks do of a plan to a file.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        with path.open("w", encoding="ascii") as file:
            Schedule(plan, world).write(file)
    except OSError as error:
        raise ConfigError(f"--goal: cannot write {path}: {error.strerror}") from error


class Done(NamedTuple):
    """An activity on one of its ranks: the labels of what begins it there, and of what ends it."""

    first: tuple[str, ...]
    last: tuple[str, ...]


class Schedule:
    """Writes the activities of a plan, rank by rank.

    Args:
        plan: what is run.
        world: what it was made for.
    """

    def __init__(self, plan: Plan, world: SimulatedWorld) -> None:
        self._lines: list[list[str]] = [[] for _ in plan.topology.participants]
        self._labels = [count(1) for _ in plan.topology.participants]
        self._tags = count()
        with no_collections():
            activities = Activities(plan, world, Wires(world)).all
            done = {id(each): dict(self._parts(each)) for each in activities}
            for earlier in activities:
                for later in earlier.then:
                    self._require(done[id(earlier)], done[id(later)])

    def write(self, file: TextIO) -> None:
        """Write it as text."""
        file.write(f"num_ranks {len(self._lines)}\n")
        for rank, lines in enumerate(self._lines):
            file.write("\n".join(["", f"rank {rank} {{", *lines, "}", ""]))

    def _parts(self, activity: Activity) -> Iterator[tuple[int, Done]]:
        """What each of its ranks does of it."""
        ranks = activity.ranks
        if len(ranks) == 1:
            label = self._do(ranks[0], f"calc {_nanoseconds(activity)}{_processor(activity)}")
            yield ranks[0], Done((label,), (label,))
        elif activity.nbytes and activity.path:
            yield from self._passed_on(activity)
        else:
            sent = [self._message(ranks[0], rank, NOTICE) for rank in ranks[1:]]
            sends = tuple(send for send, _ in sent)
            yield ranks[0], Done(sends, sends)
            yield from ((rank, Done((take,), (take,))) for rank, (_, take) in zip(ranks[1:], sent, strict=True))

    def _passed_on(self, activity: Activity) -> Iterator[tuple[int, Done]]:
        """From each rank to the next one, a bucket at a time."""
        before: str | None = None
        for here, there in pairwise(activity.ranks):
            send, take = self._message(here, there, round(activity.nbytes))
            if before is not None:
                self._lines[here].append(f"{send} requires {before}")
            yield here, Done((before or send,), (send,))
            before = take
        assert before is not None
        yield activity.ranks[-1], Done((before,), (before,))

    def _message(self, sender: int, receiver: int, nbytes: int) -> tuple[str, str]:
        """The labels of a message's send and of its receipt."""
        tag = next(self._tags)
        return (
            self._do(sender, f"send {nbytes}b to {receiver} tag {tag}"),
            self._do(receiver, f"recv {nbytes}b from {sender} tag {tag}"),
        )

    def _do(self, rank: int, what: str) -> str:
        label = f"l{next(self._labels[rank])}"
        self._lines[rank].append(f"{label}: {what}")
        return label

    def _require(self, earlier: dict[int, Done], later: dict[int, Done]) -> None:
        """What is on one rank waits there. What is not is told by a message."""
        both = earlier.keys() & later.keys()
        if not both:
            teller, told = next(iter(earlier)), next(iter(later))
            tell, hear = self._message(teller, told, NOTICE)
            self._wait(teller, (tell,), earlier[teller].last)
            self._wait(told, later[told].first, (hear,))
        for rank in sorted(both):
            self._wait(rank, later[rank].first, earlier[rank].last)

    def _wait(self, rank: int, later: tuple[str, ...], earlier: tuple[str, ...]) -> None:
        self._lines[rank] += (f"{label} requires {before}" for label in later for before in earlier)


def _nanoseconds(activity: Activity) -> int:
    """How long it takes a rank that has all links for itself."""
    rates = [link.rate / times for link, times in (activity.path or {}).items() if times]
    moving = activity.nbytes / min(rates) if rates else 0.0
    return round((activity.seconds + moving) * NANO)


def _processor(activity: Activity) -> str:
    if activity.thread is None:
        return ""
    return f" cpu {PROCESSORS[activity.thread.name.split()[0]]}"
