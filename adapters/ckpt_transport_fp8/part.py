"""Tensors of an extent that are computed, and the runs of their elements that a bucket needs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
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
    """One tensor that is computed, in whatever version.

    Attributes:
        number: of the tensor it is computed from, among those of a version.
        source_dtype, source_device: of that tensor.
        shape: rows and columns, neither of them 0.
        dtype: of the elements that are made.
        offset: of the first of them in the extent, in bytes.
        group: rows and columns of a group of elements, which are multiplied by the same factor.
        first_group: where the factors begin among all of a version; None for a change of dtype only.
    """

    number: int
    source_dtype: torch.dtype
    source_device: torch.device
    shape: tuple[int, int]
    dtype: torch.dtype
    offset: int
    group: tuple[int, int] = (1, 1)
    first_group: int | None = None

    @property
    def elements(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize

    @property
    def grid(self) -> tuple[int, int]:
        """How many groups there are, down and across."""
        (rows, columns), (high, wide) = self.shape, self.group
        return -(-rows // high), -(-columns // wide)

    def source(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The matrix it is computed from, contiguous, of the version that has these tensors."""
        return tensors[self.number].detach().reshape(self.shape)

    def of_groups(self, values: torch.Tensor) -> torch.Tensor:
        """This part's among the values for all groups of a version, shape ``(down, across)``."""
        assert self.first_group is not None
        down, across = self.grid
        return values[self.first_group : self.first_group + down * across].view(down, across)

    def runs(self, first: int, last: int) -> Iterator[Run]:
        """What lies in the bytes from ``first`` to ``last`` of the extent, which begin the slot: at most three.

        Both are where an element begins or ends.
        """
        columns, size = self.shape[1], self.dtype.itemsize
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


class Parts:
    """Parts of an extent, ascending."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._offsets = [part.offset for part in parts]
        self.scaled = [part for part in parts if part.first_group is not None]
        """Those with factors."""

    def within(self, first: int, last: int) -> Iterator[Part]:
        """Those that have bytes between ``first`` and ``last``."""
        for number in range(max(bisect_right(self._offsets, first) - 1, 0), len(self._parts)):
            part = self._parts[number]
            if part.offset >= last:
                return
            if part.offset + part.nbytes > first:
                yield part
