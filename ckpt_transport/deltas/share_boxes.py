"""What shares have of an extent, and which of them have elements that lie one behind the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ckpt_transport.errors import DeltaRefusedError
from ckpt_transport.memory import StridedRange
from ckpt_transport.planning import PlacedTensor, Share

Numbers = npt.NDArray[np.int64]


class ShareBox(NamedTuple):
    """A strided range that a share has, with a uniform range between its begin and its end.

    Attributes:
        start: its first byte in the extent.
        nbytes, stride: of its runs.
        bit: of the share.
    """

    start: int
    nbytes: int
    stride: int
    bit: int


class UniformRange(NamedTuple):
    """Elements that lie one behind the other and are within the same boxes.

    Attributes:
        first, end: the first one, and the one behind the last.
        bits: of shares that have all of them.
        boxes: of shares that may have some of them.
    """

    first: int
    end: int
    bits: int
    boxes: tuple[ShareBox, ...]


class ShareBoxes(NamedTuple):
    """What shares have of an extent: one row for each strided range and each share that has it.

    Attributes:
        start, end: its first byte in the extent, and the byte behind the last one.
        nbytes, stride: of its runs; a stride of 0 where there is one run.
        bit: of the share.
    """

    start: Numbers
    end: Numbers
    nbytes: Numbers
    stride: Numbers
    bit: Numbers

    def near(self, start: int, end: int) -> ShareBoxes:
        """Those with a byte between these two."""
        near = np.flatnonzero((self.start < end) & (self.end > start))
        return ShareBoxes(*(column[near] for column in self))

    def uniform_ranges(self, offset: int, unit: int, first: int, end: int) -> list[UniformRange]:
        """Cut elements where boxes begin and end.

        Args:
            offset: of element 0 in the extent, in bytes.
            unit: bytes of an element.
            first, end: the first element, and the one behind the last.
        """
        firsts = np.clip(-(-(self.start - offset) // unit), first, end)
        ends = np.clip((self.end - offset) // unit, first, end)
        edges = np.unique(np.concatenate([[first, end], firsts, ends]))
        bits = [0] * (len(edges) - 1)
        boxes: list[list[ShareBox]] = [[] for _ in bits]
        within = (np.searchsorted(edges, firsts), np.searchsorted(edges, ends), *self)
        for low, high, start, _, nbytes, stride, bit in zip(*(column.tolist() for column in within), strict=True):
            for number in range(low, high):
                if stride:
                    boxes[number].append(ShareBox(start, nbytes, stride, bit))
                else:
                    bits[number] |= bit
        found: list[UniformRange] = []
        for low, high, those, some in zip(edges[:-1].tolist(), edges[1:].tolist(), bits, boxes, strict=True):
            if found and not some and not found[-1].boxes and found[-1].bits == those:
                found[-1] = found[-1]._replace(end=high)
            else:
                found.append(UniformRange(low, high, those, tuple(some)))
        return found


NO_BOXES = ShareBoxes(*(np.empty(0, np.int64) for _ in ShareBoxes._fields))


def boxes_of(tensors: Sequence[PlacedTensor], shares: Sequence[Share]) -> dict[int, ShareBoxes]:
    """What shares have, by extent; the bit of each is that of its number.

    Raises:
        DeltaRefusedError: a share has bytes that its tensor has not; names the tensor.
    """
    placed: defaultdict[str, list[PlacedTensor]] = defaultdict(list)
    for tensor in tensors:
        placed[tensor.spec.name].append(tensor)
    found: defaultdict[int, list[tuple[int, StridedRange]]] = defaultdict(list)
    for number, share in enumerate(shares):
        for name, part in share.reads():
            for tensor in placed.get(name, ()):
                _check_within(part, tensor)
                for _, packed in tensor.part.common(part):
                    found[tensor.extent].append((1 << number, packed.shifted(tensor.offset)))
    return {extent: _columns(rows) for extent, rows in found.items()}


def _check_within(part: StridedRange, tensor: PlacedTensor) -> None:
    apart = part.runs == 1 or part.stride >= part.nbytes
    if not (part.start >= 0 and part.nbytes > 0 and part.runs > 0 and apart and part.end <= tensor.spec.nbytes):
        raise DeltaRefusedError(f"a sink says that it serves {part} of {tensor.spec}, which has no such bytes")


def _columns(rows: Sequence[tuple[int, StridedRange]]) -> ShareBoxes:
    columns = zip(
        *((each.start, each.end, each.nbytes, each.stride * (each.runs > 1), bit) for bit, each in rows), strict=True
    )
    return ShareBoxes(*(np.array(column, np.int64) for column in columns))
