"""Tensors of an extent that are computed, and the runs of their elements that a bucket needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Run(NamedTuple):
    """A rectangle of a matrix, and the bytes of a slot it goes into.

    Attributes:
        rows, columns: of the matrix.
        start, end: in the slot, in bytes.
    """

    rows: slice
    columns: slice
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor that is computed.

    Attributes:
        source: shape ``(rows, columns)``, contiguous.
        dtype: of the elements that are made.
        offset: of the first of them in the extent, in bytes.
        factors: what each group of elements is multiplied by, float32, shape ``(down, across)``; None for a change of
            dtype only.
        group: rows and columns of a group.
    """

    source: torch.Tensor
    dtype: torch.dtype
    offset: int
    factors: torch.Tensor | None = None
    group: tuple[int, int] = (1, 1)

    @property
    def nbytes(self) -> int:
        return self.source.numel() * self.dtype.itemsize

    def runs(self, first: int, last: int) -> Iterator[Run]:
        """What lies in the bytes from ``first`` to ``last`` of the extent, which begin the slot: at most three.

        Both are where an element begins or ends.
        """
        columns, size = self.source.shape[1], self.dtype.itemsize
        begin = max(first - self.offset, 0) // size
        end = min(last - self.offset, self.nbytes) // size
        while begin < end:
            row, column = divmod(begin, columns)
            if column or end - begin < columns:
                stop = min(end, (row + 1) * columns)
                rows, across = slice(row, row + 1), slice(column, column + stop - begin)
            else:
                stop = end - end % columns
                rows, across = slice(row, stop // columns), slice(0, columns)
            start = self.offset + begin * size - first
            yield Run(rows, across, start, start + (stop - begin) * size)
            begin = stop
