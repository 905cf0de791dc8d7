"""A rank of a test gets a context, and becomes an outcome."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckpt_transport.control import Mailbox, RouteControl
from ckpt_transport.memory.devices import HOST
from ckpt_transport.transports.interface import Group


@dataclass(frozen=True, slots=True)
class RankContext:
    """Tells one rank of a launched group who it is.

    Attributes:
        rank: its number.
        world_size: how many there are.
        mailbox: its own, on the control plane.
        addresses: everybody's mailbox address, by rank.
    """

    rank: int
    world_size: int
    mailbox: Mailbox
    addresses: Mapping[int, str]

    def group(self, route: str, ranks: Sequence[int] | None = None, device: str = HOST) -> Group:
        """A route of these ranks (all of them by default), all on one host and, if it is named, on one GPU."""
        members = tuple(range(self.world_size) if ranks is None else ranks)
        return Group(route, members, self.rank, ("localhost",) * len(members), (device,) * len(members))

    def control(self, group: Group) -> RouteControl:
        """The control channel of that route."""
        return RouteControl(self.mailbox, group, self.addresses)

    def watch(self) -> None:
        """Exchange heartbeats with everybody from now on; all ranks must call it. A silent one is lost."""
        for rank, address in self.addresses.items():
            if rank != self.rank:
                self.mailbox.watch(address)


Body = Callable[..., Any]
"""A function of a :class:`RankContext` and more arguments."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Keeps an exception as text: its type's name, its message and its traceback."""

    kind: str
    message: str
    traceback: str


@dataclass(frozen=True, slots=True)
class RankOutcome:
    """Says what became of one rank.

    Attributes:
        value: what the function returned.
        failure: what it raised, if it did.
        died: the signal that ended the process, if one did.
        exit_code: another way it ended without an answer, such as ``os._exit``.
    """

    rank: int
    value: Any = None
    failure: Failure | None = None
    died: signal.Signals | None = None
    exit_code: int | None = None

    @classmethod
    def of(cls, rank: int, function: Callable[[], Any]) -> RankOutcome:
        """What becomes of a rank that calls this function."""
        try:
            return cls(rank, function())
        except BaseException as error:
            text = "".join(traceback.format_exception(error))
            return cls(rank, failure=Failure(type(error).__name__, str(error), text))

    @property
    def ok(self) -> bool:
        """Whether the function returned."""
        return self.failure is None and self.died is None and self.exit_code is None

    def __str__(self) -> str:
        if self.died is not None:
            return f"rank {self.rank} was killed by {self.died.name}"
        if self.failure is not None:
            return f"rank {self.rank} raised {self.failure.kind}: {self.failure.message}"
        if self.exit_code is not None:
            return f"rank {self.rank} ended with exit code {self.exit_code} and no answer"
        return f"rank {self.rank} returned {self.value!r}"


class HangError(AssertionError):
    """Some ranks did not end in time.

    Attributes:
        outcomes: those of the ranks that did.
        stacks: the others' threads, by rank, as text.
    """

    def __init__(self, deadline: float, outcomes: Sequence[RankOutcome], stacks: Mapping[int, str]) -> None:
        self.outcomes, self.stacks = list(outcomes), dict(stacks)
        parts = [f"ranks {sorted(stacks)} still ran after {deadline:g} s"]
        parts += [f"rank {rank} hangs in:\n{text.rstrip()}" for rank, text in sorted(stacks.items())]
        super().__init__("\n".join(parts + [str(outcome) for outcome in outcomes]))
