"""Cutting the rows of a matrix into stretches that are worked on one at a time."""

from __future__ import annotations

from collections.abc import Iterator


def stretches(first: int, last: int, high: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut the rows from ``first`` to ``last`` into stretches of about ``most`` rows.

    A stretch lies within one band of ``high`` rows (rows 0 to high - 1, and so on), or is some whole bands. The last
    band of a matrix may be shorter, and counts as whole with no other.
    """
    while first < last:
        into = first % high
        if into or last - first < high or most < high:
            stop = min(first + max(most, 1), first + high - into, last)
        else:
            stop = min(first + most - most % high, last - last % high)
        yield first, stop
        first = stop
