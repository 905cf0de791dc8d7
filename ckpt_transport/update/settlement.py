"""Sinks settle among themselves how a staged update ends whose coordinator is gone.

The coordinator says Decide when every sink has applied the version, and Commit when every sink that lives has heard
that. So a sink that serves the new version knows that all others have applied it and know it, and one that has not
heard Decide knows that nobody serves it yet. When the coordinator is gone, each sink asks the others how far they are.
Whoever is asked follows no order of that coordinator any more, and goes back if it has not applied the version.

Of those that answer, the one of the lowest rank decides: forward, if one of them has heard Decide; else back. The
others do as it does. A sink that reaches nobody cannot tell dead from cut off, and stays in doubt.

This is the termination protocol of three-phase commit (D. Skeen, Nonblocking Commit Protocols, SIGMOD 1981). It holds
as long as a process that others take for dead does not act as if it lived: one that has stood still asks first, and
those who have settled tell it how.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable


class Standing(enum.StrEnum):
    """Says how far a sink is in the commit of a staged update. The value is what the sink says of itself."""

    UNKNOWN = "knows nothing of the update"
    APPLIED = "has applied the version and does not serve it"
    DECIDED = "knows that all have applied the version"
    FORWARD = "serves the new version"
    BACK = "serves what it did before"


class Course(enum.StrEnum):
    """Says what a sink that settles does now."""

    WAIT = "waits for others"
    FORWARD = "serves the new version"
    BACK = "takes the new version back"
    IN_DOUBT = "reaches nobody who knows more, and holds its forward passes"


_BY_STANDING = {Standing.FORWARD: Course.FORWARD, Standing.BACK: Course.BACK}


class Settlement:
    """Holds what one sink knows of the others.

    Args:
        rank: the sink's.
        others: ranks of the other sinks.
        standing: the sink's own, APPLIED or DECIDED.
    """

    def __init__(self, rank: int, others: Iterable[int], standing: Standing) -> None:
        self.rank, self.standing = rank, standing
        self._others = frozenset(others)
        self._silent = set(self._others)
        self._standings: dict[int, Standing] = {}

    def hears(self, rank: int, standing: Standing) -> None:
        """A sink says how far it is; the last that it says counts."""
        self._silent.discard(rank)
        self._standings[rank] = standing

    def loses(self, rank: int) -> None:
        """A sink shows no sign of life."""
        self._silent.discard(rank)
        if self._standings.get(rank) not in _BY_STANDING:
            self._standings.pop(rank, None)

    def course(self) -> Course:
        """What this sink does now."""
        said = set(self._standings.values())
        for standing, course in _BY_STANDING.items():
            if standing in said:
                return course
        if self._silent:
            return Course.WAIT
        if self._others and not said:
            return Course.IN_DOUBT
        if any(rank < self.rank for rank, standing in self._standings.items() if standing is not Standing.UNKNOWN):
            return Course.WAIT
        return Course.FORWARD if Standing.DECIDED in (self.standing, *said) else Course.BACK
