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

    @classmethod
    def of(cls, start: int, nbytes: int, runs: int, stride: int) -> StridedRange:
        """Runs that may touch each other, in which case they are one."""
        if runs == 1 or stride == nbytes:
            return cls(start, nbytes * runs)
        return cls(start, nbytes, runs, stride)

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

    def numbered(self, first: int, end: int) -> Iterator[StridedRange]:
        """The bytes with these numbers, counted from 0 without the gaps; ascending, at most three ranges."""
        if first >= end:
            return
        run, within = divmod(first, self.nbytes)
        last, rest = divmod(end, self.nbytes)
        if run == last or (within and end <= (run + 1) * self.nbytes):
            yield StridedRange(self.start + run * self.stride + within, end - first)
            return
        if within:
            yield StridedRange(self.start + run * self.stride + within, self.nbytes - within)
            run += 1
        if run < last:
            yield StridedRange.of(self.start + run * self.stride, self.nbytes, last - run, self.stride)
        if rest:
            yield StridedRange(self.start + last * self.stride, rest)

    def common(self, other: StridedRange) -> Iterator[tuple[StridedRange, StridedRange]]:
        """The bytes that are in another range, too, each once: where they lie, and their numbers, as above."""
        if other.runs == 1:
            for part in self.clip(other.start, other.end):
                number = (part.start - self.start) // self.stride if self.runs > 1 else 0
                first = part.start - self.start - number * self.stride + number * self.nbytes
                yield part, StridedRange(first, part.total)
        elif self.runs == 1:
            for part in other.clip(self.start, self.end):
                yield part, part.shifted(-self.start)
        elif self.stride == other.stride:
            yield from self._alike(other)
        elif self.runs <= other.runs:
            for number in self._near(other):
                run = self._run(number)
                for part in other.clip(run.start, run.end):
                    yield part, part.shifted(number * self.nbytes - run.start)
        else:
            for number in other._near(self):
                yield from self.common(other._run(number))

    def _alike(self, other: StridedRange) -> Iterator[tuple[StridedRange, StridedRange]]:
        """:meth:`common` of a range whose runs lie at the same distance: each meets two of this one at most."""
        rows, column = divmod(other.start - self.start, self.stride)
        meets = (
            (rows, column, min(self.nbytes, column + other.nbytes)),
            (rows + 1, 0, min(self.nbytes, column + other.nbytes - self.stride)),
        )
        for row, low, high in meets:
            first, last = max(row, 0), min(row + other.runs, self.runs)
            if low < high and first < last:
                start, runs = self.start + first * self.stride + low, last - first
                number = StridedRange.of(first * self.nbytes + low, high - low, runs, self.nbytes)
                yield StridedRange.of(start, high - low, runs, self.stride), number

    def _near(self, other: StridedRange) -> range:
        """The numbers of the runs that may have bytes between the first of another range and its last."""
        low, high = other.start - self.start - self.nbytes + 1, other.end - 1 - self.start
        return range(max(-(-low // self.stride), 0), min(high // self.stride + 1, self.runs))

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
