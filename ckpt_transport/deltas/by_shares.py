"""Some blocks of a carrier are cut into parts that the same shares have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ckpt_transport.deltas.carried_blocks import CarriedBlocks
from ckpt_transport.deltas.carriers import DeltaRange
from ckpt_transport.deltas.element_bits import ElementBits
from ckpt_transport.deltas.element_list import ElementList
from ckpt_transport.deltas.sections import BLOCK_UNITS
from ckpt_transport.deltas.share_boxes import ShareBox, ShareBoxes, UniformRange

SMALL_BITS = 8
"""Of numbers that are counted, where others are sorted."""

WORD_BITS = 16
BITS_OF_A_WORD = (
    np.unpackbits(np.arange(1 << WORD_BITS, dtype=np.uint16).view(np.uint8))
    .reshape(-1, WORD_BITS)
    .sum(axis=1, dtype=np.uint8)
)
LONG_RUN = 256
"""Where runs have so many units, to copy what is in each is sooner than to look at each element."""

Bits = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]
Values = npt.NDArray[np.unsignedinteger[Any]]


def divide_list(where: DeltaRange, boxes: ShareBoxes, listed: ElementList) -> list[tuple[int, ElementList]]:
    """Parts of a list, ascending for each set of shares, and the bits of the shares that have them."""
    first = listed.first * BLOCK_UNITS
    end = min(first + len(listed.counts) * BLOCK_UNITS, where.nbytes // where.unit)
    ranges = boxes.uniform_ranges(where.offset, where.unit, first, end)
    if len(ranges) == 1 and not ranges[0].boxes:
        return [(ranges[0].bits, listed)]
    positions = listed.positions
    ends = np.searchsorted(positions, np.array([uniform.end - first for uniform in ranges], np.uint32)).tolist()
    found: list[tuple[int, ElementList]] = []
    for uniform, low, high in zip(ranges, [0, *ends], ends, strict=False):
        if low == high:
            continue
        part = listed.part(low, high)
        if not uniform.boxes:
            found.append((uniform.bits, part))
            continue
        flags = sorted({box.bit for box in uniform.boxes})
        local = _within(uniform.boxes, flags, positions[low:high], where.offset + first * where.unit, where.unit)
        for number in _numbers_in(local):
            bits = uniform.bits | sum(flag for index, flag in enumerate(flags) if number >> index & 1)
            found.append((bits, part.those(np.flatnonzero(local == number))))
    return found


def divide_bits(
    where: DeltaRange, boxes: ShareBoxes, blocks: CarriedBlocks, low: int, high: int
) -> Iterator[tuple[int, ElementBits]]:
    """The same of some blocks that are not a list."""
    first, bits, values = low * BLOCK_UNITS, blocks.bits(low, high), blocks.values(low, high)
    end = 0
    for uniform in boxes.uniform_ranges(where.offset, where.unit, first, first + len(bits)):
        some = bits[uniform.first - first : uniform.end - first]
        count = int(np.count_nonzero(some))
        mine, end = values[end : end + count], end + count
        if count and uniform.boxes:
            yield from _by_runs(where, uniform, some, mine)
        elif count:
            yield uniform.bits, ElementBits.of(uniform.first, some, mine)


def _by_runs(
    where: DeltaRange, uniform: UniformRange, bits: Bools, values: Values
) -> Iterator[tuple[int, ElementBits]]:
    """Of each set of shares what lies in runs of these, which other shares have not."""
    flags = sorted({box.bit for box in uniform.boxes})
    offset = where.offset + uniform.first * where.unit
    (stride, *others), unit = {box.stride for box in uniform.boxes}, where.unit
    period = len(bits) if others or stride % unit else min(stride // unit, len(bits))
    once = _within(uniform.boxes, flags, np.arange(period, dtype=np.uint32), offset, unit)
    numbers = _numbers_in(once)
    if len(numbers) > 1:
        values_of = _by_long_runs(once, bits, values) or _by_elements(once, bits, values)
        local = _tiled(once, len(bits))
    for number in numbers:
        shares = uniform.bits | sum(flag for index, flag in enumerate(flags) if number >> index & 1)
        if len(numbers) == 1:
            yield shares, ElementBits.of(uniform.first, bits, values)
        elif len(mine := values_of(number)):
            yield shares, ElementBits.of(uniform.first, bits & (local == number), mine)


def _by_elements(once: Bits, bits: Bools, values: Values) -> Callable[[int], Values]:
    """What the elements with a number become, where numbers of units repeat; each element is looked at."""
    held = _tiled(once, len(bits)).take(np.flatnonzero(bits))
    return lambda number: values.take(np.flatnonzero(held == number))


def _by_long_runs(once: Bits, bits: Bools, values: Values) -> Callable[[int], Values] | None:
    """The same, where elements are only counted; None where runs are short, or begin within words."""
    starts = np.concatenate([[0], np.flatnonzero(once[1:] != once[:-1]) + 1])
    if len(once) % WORD_BITS or (starts % WORD_BITS).any() or len(once) < LONG_RUN * len(starts):
        return None
    edges = (np.arange(0, len(bits), len(once))[:, None] + starts).reshape(-1)
    edges = edges[edges < len(bits)]
    words = np.zeros(-(-len(bits) // WORD_BITS), np.uint16)
    packed = np.packbits(bits, bitorder="little")
    words.view(np.uint8)[: len(packed)] = packed
    ends = np.add.reduceat(BITS_OF_A_WORD.take(words), edges // WORD_BITS, dtype=np.int64).cumsum()
    numbers = once.take(edges % len(once))

    def found(number: int) -> Values:
        which = np.flatnonzero(numbers == number)
        begins = np.concatenate([[0], ends]).take(which)
        return np.concatenate(
            [values[low:high] for low, high in zip(begins.tolist(), ends.take(which).tolist(), strict=True)]
        )

    return found


def _tiled(once: Bits, count: int) -> Bits:
    return np.tile(once, -(-count // len(once)))[:count]


def _within(
    boxes: Sequence[ShareBox], flags: Sequence[int], positions: npt.NDArray[np.uint32], offset: int, unit: int
) -> Bits:
    """Of each element a bit for each share, which is set where it lies in a run that the share has.

    Args:
        boxes: that begin before all elements and end behind them.
        flags: the bits of their shares; the first one is bit 0 here, and so on.
        positions: of the elements.
        offset: of position 0 in the extent, in bytes.
        unit: bytes of an element.
    """
    dtype: type[np.integer] = np.uint8 if len(flags) <= SMALL_BITS else np.int64
    bits: Bits = np.zeros(len(positions), dtype)
    for box in boxes:
        bits |= _in_a_run(box, positions, offset, unit) * dtype(1 << flags.index(box.bit))
    return bits


def _in_a_run(box: ShareBox, positions: npt.NDArray[np.uint32], offset: int, unit: int) -> npt.NDArray[np.bool_]:
    """Whether elements between the begin of a box and its end lie in one of its runs. Division by a number is fast."""
    from_start = (offset - box.start) % box.stride
    reached = from_start + unit * (int(positions[-1]) + 1)
    at = positions if reached < 1 << 32 else positions.astype(np.uint64)
    at = at * at.dtype.type(unit)
    at += at.dtype.type(from_start)
    at -= at // at.dtype.type(box.stride) * at.dtype.type(box.stride)
    return at <= box.nbytes - unit


def _numbers_in(bits: Bits) -> Sequence[int]:
    found = np.flatnonzero(np.bincount(bits)) if bits.dtype == np.uint8 else np.unique(bits)
    return [int(each) for each in found]
