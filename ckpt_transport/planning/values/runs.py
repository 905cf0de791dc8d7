"""Which bytes of which tensors: sets of runs, with the operations that sets have."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping

Interval = tuple[int, int]
"""First byte, and the one behind the last."""


class Runs:
    """A set of bytes of named tensors. An empty tensor counts as one that is there or not."""

    def __init__(self, runs: Iterable[tuple[str, int, int]] = ()) -> None:
        """Args:
        runs: (name, first byte, number of bytes) each.
        """
        self._by_name: dict[str, list[Interval]] = {}
        for name, start, nbytes in runs:
            self.add(name, start, nbytes)

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        """Runs that do not touch each other, by name and then ascending."""
        for name in sorted(self._by_name):
            for start, end in self._by_name[name]:
                yield name, start, end - start

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Runs) and list(self) == list(other)

    def __bool__(self) -> bool:
        return bool(self._by_name)

    __hash__ = None  # type: ignore[assignment]

    def add(self, name: str, start: int, nbytes: int) -> None:
        """Put bytes ``start`` to ``start + nbytes`` in; those that are in it stay."""
        intervals = self._by_name.setdefault(name, [])
        first = bisect_left(intervals, start, key=lambda interval: interval[1])
        last = bisect_right(intervals, start + nbytes, key=lambda interval: interval[0])
        joined = [(start, start + nbytes), *intervals[first:last]]
        intervals[first:last] = [(min(low for low, _ in joined), max(high for _, high in joined))]

    def lacking(self, name: str, start: int, nbytes: int) -> list[Interval]:
        """The parts of bytes ``start`` to ``start + nbytes`` that are not in it, ascending; of no bytes, itself."""
        if name not in self._by_name:
            return [(start, start + nbytes)]
        found, reached = [], start
        for low, high in self._by_name[name]:
            if low > reached and reached < start + nbytes:
                found.append((reached, min(low, start + nbytes)))
            reached = max(reached, high)
        if reached < start + nbytes:
            found.append((reached, start + nbytes))
        return found

    def covers(self, sizes: Mapping[str, int]) -> bool:
        """Whether all bytes of all tensors are in it; ``sizes`` are bytes by name."""
        return all(not self.lacking(name, 0, nbytes) for name, nbytes in sizes.items())

    def common(self, other: Runs) -> Runs:
        """What is in both."""
        both = Runs()
        for name, intervals in self._by_name.items():
            theirs = iter(other._by_name.get(name, ()))
            mine = iter(intervals)
            left, right = next(mine, None), next(theirs, None)
            while left is not None and right is not None:
                low, high = max(left[0], right[0]), min(left[1], right[1])
                if low < high or left == right:
                    both.add(name, low, high - low)
                if left[1] <= right[1]:
                    left = next(mine, None)
                else:
                    right = next(theirs, None)
        return both
