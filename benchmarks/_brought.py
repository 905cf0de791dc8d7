"""Holds what updates of one kind took, and makes rows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from benchmarks._row import Row
from benchmarks._trainer import Timed, milliseconds

AUTO = "auto"
WORDS = {"auto": "staged if possible", "in_place": "in place"}


class Variant(NamedTuple):
    """How versions are brought: two settings of whoever brings them."""

    transport: str
    commit: str

    def __str__(self) -> str:
        return f"{self.transport}, {WORDS.get(self.commit, self.commit)}"


class Extra(NamedTuple):
    """The most bytes of GPU memory that were in use beyond those before the first update: until its end, and later."""

    first: int
    later: int

    def __str__(self) -> str:
        return f"{self.later / (1 << 30):.2f} GiB, at first {self.first / (1 << 30):.2f}"


@dataclass(frozen=True)
class Brought:
    """What the updates of one variant took.

    Attributes:
        warmed: the warm-up before the first update; None where there was none.
        first: that update.
        then: those that are counted.
        limits: seconds of plain copies, each measured before one of those.
        compared: how many tensors were compared with what they are to be; all were right.
        extra: what all GPUs had in use; None where it was not looked at.
    """

    warmed: Timed | None
    first: Timed
    then: Sequence[Timed]
    limits: Sequence[float]
    compared: int
    extra: Extra | None = None

    @property
    def wall(self) -> float:
        return median(timed.wall for timed in self.then)

    @property
    def held(self) -> float:
        return median(timed.held for timed in self.then)

    @property
    def limit(self) -> float:
        return median(self.limits)

    @property
    def middle(self) -> Timed:
        """The update whose time is nearest to the median."""
        return min(self.then, key=lambda timed: abs(timed.wall - self.wall))

    @property
    def says(self) -> str:
        middle = self.middle
        memory = f"; {self.extra} of GPU memory" if self.extra else ""
        not_staged = f"; in place: {middle.in_place}" if middle.in_place else ""
        return (
            f"first {milliseconds(self.first.wall)}, median {milliseconds(self.wall)} of {len(self.then)}, limit "
            f"{milliseconds(self.limit)}; held {milliseconds(self.held)}, first {milliseconds(self.first.held)}; "
            f"wrong: 0 of {self.compared:,}{memory}{not_staged}; first: {self.first.said}; median, "
            f"{', '.join(set(middle.ways))}: {middle.said}; run was predicted as {milliseconds(middle.predicted)}"
        )

    @property
    def phases(self) -> Mapping[str, Mapping[str, float]]:
        """Of the warm-up, the first update and the one in the middle."""
        updates = {"warm-up": self.warmed, "first": self.first, "median": self.middle}
        return {name: phases_of(timed) for name, timed in updates.items() if timed is not None}

    def row(self, name: str, against: str, target: str) -> Row:
        """The row that holds them against plain copies."""
        return Row(name, self.wall / self.limit, against, target, self.says, self.phases)


def phases_of(timed: Timed) -> dict[str, float]:
    """Milliseconds of the phases of an update; then by the caller's clock, and for how long requests stood still."""
    found = {**timed.phases, "by the caller's clock": timed.wall, "held": timed.held}
    return {name: round(seconds * 1e3, 2) for name, seconds in found.items()}


def against_named(title: str, found: Mapping[Variant, Brought]) -> list[Row]:
    """A row for ``auto`` against the best transport by name, for each way to commit that has both."""
    rows = []
    for variant, auto in found.items():
        named = {each.transport: brought for each, brought in found.items() if each.commit == variant.commit}
        del named[variant.transport]
        if variant.transport == AUTO and named:
            best = min(named, key=lambda transport: named[transport].wall)
            detail = f"{milliseconds(auto.wall)}, {milliseconds(named[best].wall)}"
            rows.append(Row(f"{title}: {variant}", auto.wall / named[best].wall, f"{best} by name", "<=1.05", detail))
    return rows
