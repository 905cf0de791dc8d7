"""A plan numbers the bytes of a tensor that is cut by columns block by block.

As the checkpoint has it, columns are a short range in every row. In the order of blocks they are one range, and can be
cut, routed and proved like any other::

    rows of a tensor, cut at byte 6      its bytes in the order of blocks
    a a a a a a b b                      a a a a a a a a a a a a b b b b
    a a a a a a b b

Blocks are what sources have, and where sinks cut these by columns, what is left of them. So the cost of a plan depends
on the number of blocks, and not on the number of rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate

import msgspec

from ckpt_transport.memory import StridedRange


class BlockOrder(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """How the bytes of one tensor are numbered.

    Attributes:
        name: of the tensor.
        blocks: its bytes, each in one of them. Numbers go through the runs of one block after the other.
    """

    name: str
    blocks: tuple[StridedRange, ...]

    def __post_init__(self) -> None:
        for start, nbytes, runs, stride in self.blocks:
            if start < 0 or nbytes <= 0 or runs <= 0 or (runs > 1 and stride <= nbytes):
                raise ValueError(f"{runs} runs of {nbytes} bytes, {stride} apart, are no block of '{self.name}'")

    @cached_property
    def starts(self) -> Sequence[int]:
        """The number of the first byte of each block."""
        return [0, *accumulate(block.total for block in self.blocks)][:-1]

    @property
    def nbytes(self) -> int:
        """How many bytes have a number."""
        return sum(block.total for block in self.blocks)

    def numbers(self, part: StridedRange) -> Iterator[tuple[StridedRange, StridedRange]]:
        """Bytes of the tensor block by block: their numbers, and where they lie in it."""
        for first, block in zip(self.starts, self.blocks, strict=True):
            if block.start < part.end and part.start < block.end:
                for place, number in block.common(part):
                    yield number.shifted(first), place

    def places(self, number: int, nbytes: int) -> Iterator[StridedRange]:
        """Where bytes with consecutive numbers lie in the tensor, in the order of their numbers."""
        end = number + nbytes
        for which in range(max(bisect_right(self.starts, number) - 1, 0), len(self.blocks)):
            first, block = self.starts[which], self.blocks[which]
            if first >= end:
                return
            yield from block.numbered(max(number - first, 0), min(end - first, block.total))


class ColumnPart(msgspec.Struct, frozen=True, array_like=True):
    """A block of columns of what a source has of a tensor.

    Attributes:
        extent, offset: where it is in the order of blocks: the number of an extent that the plan has made, and a byte
            there.
        source: the number of the extent that the source has.
        part: the bytes there.
    """

    extent: int
    offset: int
    source: int
    part: StridedRange
