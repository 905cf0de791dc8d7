"""A strided range is equally long runs of bytes at equal distances, as a slice of columns is in a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class StridedRange(NamedTuple):
    """Runs of bytes that do not touch each other, or one run.

    Attributes:
        start: the first byte.
        nbytes: the length of each.
        runs: how many there are.
        stride: how far apart they start; of no meaning for one.
    """

    start: int
    nbytes: int
    runs: int = 1
    stride: int = 0

    @property
    def end(self) -> int:
        """The byte behind the last one."""
        return self.start + (self.runs - 1) * self.stride + self.nbytes

    @property
    def total(self) -> int:
        """How many bytes there are in all runs."""
        return self.nbytes * self.runs

    def shifted(self, by: int) -> StridedRange:
        """The same runs, ``by`` bytes further on."""
        return StridedRange(self.start + by, self.nbytes, self.runs, self.stride)

    def clip(self, low: int, high: int) -> Iterator[StridedRange]:
        """What lies from byte ``low`` up to ``high``, ascending: at most a part of a run, whole runs, and a part."""
        if low <= self.start and self.end <= high:
            yield self
        elif self.runs == 1:
            first, last = max(self.start, low), min(self.end, high)
            if first < last:
                yield StridedRange(first, last - first)
        else:
            whole = min(max(-(-(low - self.start) // self.stride), 0), self.runs)
            behind = min((high - self.nbytes - self.start) // self.stride + 1, self.runs)
            if whole > 0:
                yield from self._run(whole - 1).clip(low, high)
            if whole < behind:
                yield self._replace(start=self.start + whole * self.stride, runs=behind - whole)
            if max(whole, behind) < self.runs:
                yield from self._run(max(whole, behind)).clip(low, high)

    def _run(self, number: int) -> StridedRange:
        return StridedRange(self.start + number * self.stride, self.nbytes)


def joined(ranges: Iterable[StridedRange]) -> list[StridedRange]:
    """The same ranges, ascending; one run that begins where another ends continues it."""
    found: list[StridedRange] = []
    for each in sorted(ranges):
        if found and each.runs == found[-1].runs == 1 and each.start == found[-1].end:
            found[-1] = found[-1]._replace(nbytes=found[-1].nbytes + each.nbytes)
        else:
            found.append(each)
    return found
