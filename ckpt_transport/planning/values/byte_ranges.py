"""A range of bytes has a start and an end; a set of them says which bytes of which tensors are there."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple


class ByteRange(NamedTuple):
    """The bytes from ``start`` on, up to ``end``, which is not one of them."""

    start: int
    end: int


class ByteRangeSet:
    """A set of bytes of named tensors. An empty tensor is in the set or not, like a byte."""

    def __init__(self, ranges: Iterable[tuple[str, int, int]] = ()) -> None:
        """Args:
        ranges: (name, first byte, number of bytes) each.
        """
        self._by_name: dict[str, list[ByteRange]] = {}
        for name, start, nbytes in ranges:
            self.add(name, start, nbytes)

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        """(name, first byte, number of bytes) of ranges that do not touch each other, by name and then ascending."""
        for name in sorted(self._by_name):
            for start, end in self._by_name[name]:
                yield name, start, end - start

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByteRangeSet) and list(self) == list(other)

    def __bool__(self) -> bool:
        return bool(self._by_name)

    __hash__ = None  # type: ignore[assignment]

    def add(self, name: str, start: int, nbytes: int) -> None:
        """Put ``nbytes`` bytes of a tensor, from ``start`` on, into the set. It may hold some of them already."""
        ranges = self._by_name.setdefault(name, [])
        first = bisect_left(ranges, start, key=lambda held: held.end)
        last = bisect_right(ranges, start + nbytes, key=lambda held: held.start)
        if first < last:
            ranges[first:last] = [ByteRange(min(start, ranges[first].start), max(start + nbytes, ranges[last - 1].end))]
        else:
            ranges.insert(first, ByteRange(start, start + nbytes))

    def missing(self, name: str, start: int, nbytes: int) -> list[ByteRange]:
        """What the set lacks of ``nbytes`` bytes of a tensor, from ``start`` on, ascending.

        An empty tensor that the set lacks is one empty range.
        """
        if name not in self._by_name:
            return [ByteRange(start, start + nbytes)]
        found, reached = [], start
        for low, high in self._by_name[name]:
            if low > reached and reached < start + nbytes:
                found.append(ByteRange(reached, min(low, start + nbytes)))
            reached = max(reached, high)
        if reached < start + nbytes:
            found.append(ByteRange(reached, start + nbytes))
        return found

    def covers(self, sizes: Mapping[str, int]) -> bool:
        """Whether the set holds all bytes of all these tensors; ``sizes`` are bytes by name."""
        return all(not self.missing(name, 0, nbytes) for name, nbytes in sizes.items())

    def intersection(self, other: ByteRangeSet) -> ByteRangeSet:
        """The bytes that are in both sets."""
        both = ByteRangeSet()
        for name, ranges in self._by_name.items():
            theirs = iter(other._by_name.get(name, ()))
            mine = iter(ranges)
            left, right = next(mine, None), next(theirs, None)
            while left is not None and right is not None:
                low, high = max(left.start, right.start), min(left.end, right.end)
                if low < high or left == right:
                    both.add(name, low, high - low)
                if left.end <= right.end:
                    left = next(mine, None)
                else:
                    right = next(theirs, None)
        return both
