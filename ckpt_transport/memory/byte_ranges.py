"""Computes with ranges of bytes under strided memory, as arrays: there may be millions of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ckpt_transport.memory.strided_range import StridedRange

Offsets = npt.NDArray[np.int64]

MOST_RANGES = 1 << 24
"""Finer interleaving than this is not looked into: it would take more memory than it is worth."""


@dataclass(frozen=True, slots=True)
class EqualRanges:
    """Ranges of one length: bytes ``starts[i]`` to ``starts[i] + nbytes``."""

    starts: Offsets
    nbytes: int


class TooFineError(Exception):
    """Memory is so finely interleaved that its ranges are not worth counting, or overlaps with itself."""


def ranges_of(
    offset: int, shape: Sequence[int], strides: Sequence[int], itemsize: int, most: int = MOST_RANGES
) -> EqualRanges:
    """The ranges of bytes that elements cover, as long as possible.

    Args:
        offset: of the first element, in bytes.
        shape: in elements.
        strides: in bytes.
        itemsize: bytes of an element.
        most: how many ranges there may be.

    Raises:
        TooFineError: there are more, or an element is there twice.
    """
    if 0 in shape:
        return EqualRanges(np.empty(0, np.int64), itemsize)
    dims = sorted((stride, count) for count, stride in zip(shape, strides, strict=True) if count > 1)
    nbytes = itemsize
    while dims and dims[0][0] == nbytes:
        nbytes *= dims.pop(0)[1]
    if math.prod(count for _, count in dims) > most:
        raise TooFineError(f"more than {most:,} separate ranges of bytes")
    if any(stride == 0 for stride, _ in dims):
        raise TooFineError("elements share memory")
    starts = np.array([offset], np.int64)
    for stride, count in dims:
        starts = (starts[:, None] + stride * np.arange(count, dtype=np.int64)).reshape(-1)
    return EqualRanges(starts, nbytes)


def in_order(parts: Iterable[EqualRanges]) -> tuple[Offsets, Offsets, Offsets]:
    """All ranges, ascending by start: their starts, their ends, and the number of the part that each comes from."""
    listed = list(parts)
    if not listed:
        return tuple(np.empty(0, np.int64) for _ in range(3))  # type: ignore[return-value]
    starts = np.concatenate([part.starts for part in listed])
    ends = np.concatenate([part.starts + part.nbytes for part in listed])
    numbers = np.concatenate([np.full(part.starts.size, n, np.int64) for n, part in enumerate(listed)])
    order = np.argsort(starts, kind="stable")
    return starts[order], ends[order], numbers[order]


def union(parts: Iterable[EqualRanges]) -> tuple[Offsets, Offsets]:
    """The starts and ends of ranges that are as few as possible, and have the same bytes."""
    starts, ends, _ = in_order(parts)
    if not starts.size:
        return starts, ends
    reach = np.maximum.accumulate(ends)
    begins = np.concatenate(([True], starts[1:] > reach[:-1]))
    return starts[begins], reach[np.concatenate((begins[1:], [True]))]


def strided(starts: Offsets, ends: Offsets, most: int) -> list[StridedRange]:
    """The ranges of a union as few strided ranges, no two of which interleave.

    Raises:
        TooFineError: there are more than ``most``.
    """
    found: list[StridedRange] = []
    lengths, steps = ends - starts, np.diff(starts)
    first = 0
    while first < len(starts):
        if len(found) == most:
            raise TooFineError(f"more than {most:,} strided ranges of bytes")
        count = _alike(lengths, first)
        if count > 1:
            count = _alike(steps[: first + count - 1], first) + 1
        stride = int(steps[first]) if count > 1 else 0
        found.append(StridedRange(int(starts[first]), int(lengths[first]), count, stride))
        first += count
    return found


def _alike(numbers: Offsets, first: int) -> int:
    """How many numbers from that place on equal the first of these."""
    other = numbers[first:] != numbers[first]
    return int(np.argmax(other)) if other.any() else len(other)


def overlaps(starts: Offsets, ends: Offsets, numbers: Offsets) -> set[tuple[int, int]]:
    """Pairs of parts that share a byte; of each part at least one such pair, not all."""
    if not starts.size:
        return set()
    reach = np.maximum.accumulate(ends)
    furthest = np.maximum.accumulate(np.where(ends == reach, np.arange(ends.size), 0))
    (again,) = np.nonzero(starts[1:] < reach[:-1])
    return {(int(numbers[furthest[i]]), int(numbers[i + 1])) for i in again}


def missing_of(starts: Offsets, ends: Offsets, begin: int, end: int) -> list[tuple[int, int]]:
    """What of ``begin`` to ``end`` is in none of the ranges of a union."""
    left, at = [], begin
    for start, stop in zip(starts.tolist(), ends.tolist(), strict=True):
        if stop <= at:
            continue
        if start >= end:
            break
        if start > at:
            left.append((at, start))
        at = max(at, stop)
    if at < end:
        left.append((at, end))
    return left
