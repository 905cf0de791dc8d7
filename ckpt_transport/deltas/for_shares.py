"""What differs is divided among those who serve it: each carrier holds elements that the same shares have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ckpt_transport.deltas.all_cores import by_all_cores
from ckpt_transport.deltas.carriers import DeltaRange, Difference, Differences
from ckpt_transport.deltas.element_list import ElementList, encode_list
from ckpt_transport.deltas.encoded import Encoded
from ckpt_transport.deltas.sections import BLOCK_UNITS
from ckpt_transport.deltas.share_boxes import NO_BOXES, ShareBox, ShareBoxes, boxes_of
from ckpt_transport.planning import PlacedTensor, ServedShares, name_of_share

MOST_SHARES = 62
"""Where there are more, everybody is sent everything: an element has a bit for each."""
TOGETHER = 16
"""So many blocks are divided at a time: of BF16 2 MiB, of which what differs stays in the cache."""
SMALL_BITS = 8
"""Of numbers that are counted, where others are sorted."""

Bits = npt.NDArray[np.integer]


class ForShares:
    """Knows which elements of a version each share has.

    Args:
        tensors: of the version, and where they lie here.
        served: what sinks serve of it.

    Raises:
        DeltaRefusedError: a share has bytes that its tensor has not; names the tensor.
    """

    def __init__(self, tensors: Sequence[PlacedTensor], served: ServedShares) -> None:
        self._served = served
        self._numbers = tuple(range(len(served.shares) if len(served.shares) <= MOST_SHARES else 0))
        self._boxes = boxes_of(tensors, [served.shares[number] for number in self._numbers])

    def divide(self, differences: Differences) -> Differences:
        """The same differences, in carriers of which each is for those who serve its elements.

        What no sink serves is in none of them. Where nothing is left for a sink, all are sent an empty one.
        """
        if not self._numbers:
            return differences
        divided = list(self._divided(differences.found))
        if {number for part in divided for number in part.shares} != set(self._numbers):
            first = differences.found[0]
            divided.append(Difference(first.range, Encoded.nothing(first.encoded.raw.device), self._numbers))
        return Differences(tuple(divided), differences.elements, tuple(map(name_of_share, self._served.shares)))

    def _divided(self, found: Sequence[Difference]) -> Iterator[Difference]:
        work: list[tuple[DeltaRange, ShareBoxes, ElementList]] = []
        owners: list[int] = []
        for number, (where, encoded, _) in enumerate(found):
            near = self._boxes.get(where.extent, NO_BOXES).near(where.offset, where.offset + where.nbytes)
            blocks = ElementList.of(encoded, where.unit, where.nbytes).blocks(TOGETHER)
            work += [(where, near, each) for each in blocks]
            owners += [number] * len(blocks)
        parts: defaultdict[int, defaultdict[int, list[ElementList]]] = defaultdict(lambda: defaultdict(list))
        for number, pieces in zip(owners, by_all_cores(lambda each: _by_bits(*each), work), strict=True):
            for bits, part in pieces:
                parts[number][bits].append(part)
        wanted = [
            (found[number], bits, pieces, len(by_bits) == 1)
            for number, by_bits in parts.items()
            for bits, pieces in sorted(by_bits.items())
            if bits or self._served.everything
        ]
        yield from by_all_cores(lambda each: self._carried(*each), wanted)

    def _carried(self, difference: Difference, bits: int, parts: Sequence[ElementList], alone: bool) -> Difference:
        """What the shares with these bits have of a difference; alone where that is all of it."""
        shares = tuple(number for number in self._numbers if bits >> number & 1)
        if alone:
            return difference._replace(shares=shares)
        where, encoded, _ = difference
        first, units, narrow = encode_list(parts, where.unit, where.nbytes)
        there = where._replace(offset=where.offset + first * where.unit, nbytes=units * where.unit)
        return Difference(there, replace(narrow, raw=narrow.raw.to(encoded.raw.device)), shares)


def _by_bits(where: DeltaRange, boxes: ShareBoxes, listed: ElementList) -> list[tuple[int, ElementList]]:
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
