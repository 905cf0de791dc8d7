"""The assignment decides which holder sends what, where several hold the same bytes.

There are *units*: ranges of bytes that the same holders have, small beside a holder's fair share.
:func:`assign` gives every unit to one of its holders so that all of them end at about the same time:

1. the units that fewest hold come first, the larger before the smaller, each to the holder that would end first with it
   (R. L. Graham, Bounds on multiprocessing timing anomalies, 1969, for machines of different speed);
2. while it helps, the holder that ends last hands a unit to another, which may hand some on in turn (an augmenting
   path, as in bipartite matching): what only a few hold pushes what many hold out of their way;
3. where units are so few that one more or less matters, all assignments are searched.

A test compares the result with the exact optimum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

UNITS_PER_HOLDER = 24
"""So many units make up a fair share, so that one more or less is a few per cent."""
FEW_UNITS = 14
"""So many are searched for the best assignment."""
SEARCH_STEPS = 30_000


@dataclass(frozen=True, slots=True)
class Unit:
    """Bytes that one holder sends.

    Attributes:
        nbytes: its size.
        holders: ranks of those who have it, ascending.
    """

    nbytes: int
    holders: tuple[int, ...]


def assign(units: Sequence[Unit], rates: Mapping[int, float]) -> list[int]:
    """Choose a holder for every unit, so that the one that ends last ends early. Pure and deterministic.

    Args:
        units: what there is to send.
        rates: bytes per second at which each holder can send.
    """
    loads = dict.fromkeys(sorted(rates), 0.0)
    owners = [0] * len(units)
    order = sorted(range(len(units)), key=lambda n: (len(units[n].holders), -units[n].nbytes, n))
    for number in order:
        unit = units[number]
        owner = min(unit.holders, key=lambda rank: ((loads[rank] + unit.nbytes) / rates[rank], rank))
        owners[number] = owner
        loads[owner] += unit.nbytes
    _Exchange(units, rates, loads, owners).run()
    if len(units) <= FEW_UNITS:
        return _Search(units, rates, owners).best()
    return owners


class _Exchange:
    """Hands units on along chains of holders, as long as the last end gets earlier."""

    def __init__(
        self, units: Sequence[Unit], rates: Mapping[int, float], loads: dict[int, float], owners: list[int]
    ) -> None:
        self._units, self._rates, self._loads, self._owners = units, rates, loads, owners
        self._of: dict[int, list[int]] = {rank: [] for rank in rates}
        for number in sorted(range(len(units)), key=lambda n: (units[n].nbytes, n)):
            self._of[owners[number]].append(number)

    def run(self) -> None:
        for _ in range(4 * len(self._units)):
            worst = max(self._rates, key=lambda rank: (self._loads[rank] / self._rates[rank], -rank))
            limit = self._loads[worst] / self._rates[worst]
            if not self._relieve(worst, 0, limit, {worst}):
                return

    def _relieve(self, rank: int, extra: int, limit: float, seen: set[int]) -> bool:
        """Have ``rank``, which is given ``extra`` bytes, end before ``limit`` by handing units on."""
        for number in tuple(self._of[rank]):
            unit = self._units[number]
            if not unit.nbytes:
                continue
            enough = (self._loads[rank] + extra - unit.nbytes) / self._rates[rank] < limit
            others = [other for other in unit.holders if other not in seen]
            others.sort(key=lambda other: (self._loads[other] + unit.nbytes) / self._rates[other])
            if others and (self._loads[others[0]] + unit.nbytes) / self._rates[others[0]] < limit:
                self._move(number, others[0])
                if enough:
                    return True
            elif enough:
                for other in others:
                    if other in seen:
                        continue
                    seen.add(other)
                    if self._relieve(other, unit.nbytes, limit, seen):
                        self._move(number, other)
                        return True
        return False

    def _move(self, number: int, to: int) -> None:
        unit, owner = self._units[number], self._owners[number]
        self._of[owner].remove(number)
        self._of[to].append(number)
        self._of[to].sort(key=lambda n: (self._units[n].nbytes, n))
        self._loads[owner] -= unit.nbytes
        self._loads[to] += unit.nbytes
        self._owners[number] = to


class _Search:
    """Tries all assignments, larger units first, and skips those that cannot be better than the best so far."""

    def __init__(self, units: Sequence[Unit], rates: Mapping[int, float], start: Sequence[int]) -> None:
        self._units, self._rates = units, rates
        self._order = sorted(range(len(units)), key=lambda n: (-units[n].nbytes, n))
        self._loads = dict.fromkeys(rates, 0.0)
        self._owners = list(start)
        self._best = list(start)
        self._left = SEARCH_STEPS
        for number, owner in enumerate(start):
            self._loads[owner] += units[number].nbytes
        self._end = max((self._loads[rank] / rates[rank] for rank in rates), default=0.0)
        self._loads = dict.fromkeys(rates, 0.0)

    def best(self) -> list[int]:
        self._place(0)
        return self._best

    def _place(self, depth: int) -> None:
        if depth == len(self._order):
            self._end = max(self._loads[rank] / self._rates[rank] for rank in self._rates)
            self._best = list(self._owners)
            return
        self._left -= 1
        if self._left < 0:
            return
        number = self._order[depth]
        unit = self._units[number]
        for owner in sorted(unit.holders, key=lambda rank: (self._loads[rank] + unit.nbytes) / self._rates[rank]):
            if (self._loads[owner] + unit.nbytes) / self._rates[owner] >= self._end:
                break
            self._loads[owner] += unit.nbytes
            self._owners[number] = owner
            self._place(depth + 1)
            self._loads[owner] -= unit.nbytes
