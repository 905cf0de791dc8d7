"""A plan numbers the bytes of a tensor that sinks cut by columns block of columns by block.

As the checkpoint has it, a slice of columns is a short range in every row. In column order it is one range, and can be
cut, routed and proved like any other::

    rows of a tensor, cut at byte 6      its bytes in column order
    a a a a a a b b                      a a a a a a a a a a a a b b b b
    a a a a a a b b
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import msgspec

from ckpt_transport.memory import StridedRange


class ColumnOrder(msgspec.Struct, frozen=True, array_like=True):
    """How the bytes of one tensor are numbered.

    Attributes:
        name: of the tensor.
        rows: how many it has.
        edges: where its blocks of columns begin and end in each row, in bytes, ascending from 0.
    """

    name: str
    rows: int
    edges: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return self.edges[-1]

    def blocks(self, part: StridedRange) -> Iterator[tuple[int, StridedRange]]:
        """Bytes of the tensor block by block, each with the number of its first byte in column order.

        Args:
            part: one run, or runs at the distance of rows that do not leave them.
        """
        for rows in self._by_rows(part):
            row, column = divmod(rows.start, self.row_bytes)
            for low, high in pairwise(self.edges):
                first, last = max(column, low), min(column + rows.nbytes, high)
                if first < last:
                    number = low * self.rows + row * (high - low) + first - low
                    start = row * self.row_bytes + first
                    yield number, StridedRange(start, last - first, rows.runs, self.row_bytes)

    def _by_rows(self, part: StridedRange) -> Iterator[StridedRange]:
        """The same bytes, as runs that lie within rows."""
        size = self.row_bytes
        if part.runs > 1 or part.start // size == (part.end - 1) // size:
            yield part
            return
        first, last = -(-part.start // size), part.end // size
        if part.start < first * size:
            yield StridedRange(part.start, first * size - part.start)
        if first < last:
            yield StridedRange(first * size, size, last - first, size)
        if last * size < part.end:
            yield StridedRange(last * size, part.end - last * size)

    def runs(self, number: int, nbytes: int) -> Iterator[tuple[int, int]]:
        """Where bytes that follow one another in column order lie in the tensor: first byte and length of each run."""
        end = number + nbytes
        for low, high in pairwise(self.edges):
            width, base = high - low, low * self.rows
            first, last = max(number, base) - base, min(end, high * self.rows) - base
            while first < last:
                row, column = divmod(first, width)
                length = min(width - column, last - first)
                yield row * self.row_bytes + low + column, length
                first += length


class ColumnPart(msgspec.Struct, frozen=True, array_like=True):
    """A block of columns of what a source has of a tensor.

    Attributes:
        extent, offset: where it is in column order: the number of an extent that the plan has made, and a byte there.
        source: the number of the extent that the source has.
        part: the bytes there.
    """

    extent: int
    offset: int
    source: int
    part: StridedRange
