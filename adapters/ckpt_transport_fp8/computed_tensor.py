"""A computed tensor has its elements from a source tensor; the work on it is cut into rectangles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Rectangle(NamedTuple):
    """A rectangle of a matrix, and the bytes that its elements become.

    Attributes:
        rows, columns: of the matrix.
        start, end: of the bytes, counted from the first that was asked for.
    """

    rows: slice
    columns: slice
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ComputedTensor:
    """A tensor of an extent that is computed from a source tensor, in each version in the same way.

    Attributes:
        number: the place of the source tensor among the tensors of a version.
        source_dtype, source_device: what the source tensor has.
        shape: rows and columns, neither of them 0.
        dtype: of the elements that are computed.
        offset: where these begin in the extent, in bytes.
        group: rows and columns of a *group*, the elements that share a scale.
        first_group: where the tensor's groups begin among all groups of a version.
    """

    number: int
    source_dtype: torch.dtype
    source_device: torch.device
    shape: tuple[int, int]
    dtype: torch.dtype
    offset: int
    group: tuple[int, int]
    first_group: int

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def end(self) -> int:
        """The end of the tensor in the extent, in bytes."""
        return self.offset + self.nbytes

    @property
    def grid(self) -> tuple[int, int]:
        """How many groups there are, down and across."""
        (rows, columns), (high, wide) = self.shape, self.group
        return -(-rows // high), -(-columns // wide)

    def source(self, sources: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the matrix that the tensor is computed from, contiguous; ``sources`` are all tensors of a version."""
        return sources[self.number].detach().reshape(self.shape)

    def own_groups(self, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """Select the values of the groups that have elements in these rows of the tensor.

        Args:
            values: one for each group of a version.
            rows: of the tensor.

        Returns: a view of shape ``(groups down, groups across)``.
        """
        (down, across), high = self.grid, self.group[0]
        own = values[self.first_group : self.first_group + down * across].view(down, across)
        return own[rows.start // high : -(-rows.stop // high)]

    def rectangles(self, begin: int, end: int, most: int) -> Iterator[Rectangle]:
        """Cut the elements in the bytes from ``begin`` to ``end`` of the extent into rectangles.

        Both are where an element begins or ends. A rectangle has about ``most`` elements: whole rows, or some of one
        row. Its rows lie within one row of groups, or are all rows of one or more of them.
        """
        columns, size = self.shape[1], self.dtype.itemsize
        first = max(begin - self.offset, 0) // size
        last = min(end - self.offset, self.nbytes) // size
        while first < last:
            row, column = divmod(first, columns)
            if column or last - first < columns:
                high, wide = 1, min(columns - column, last - first)
            else:
                high, wide = self._rows_at_once(row, last // columns, most // columns), columns
            start = self.offset + first * size - begin
            yield Rectangle(slice(row, row + high), slice(column, column + wide), start, start + high * wide * size)
            first += high * wide

    def _rows_at_once(self, first: int, last: int, most: int) -> int:
        """How many rows from ``first`` on, before ``last``, make a rectangle."""
        high = self.group[0]
        into = first % high
        if into or last - first < high or most < high:
            return min(max(most, 1), high - into, last - first)
        return min(most - most % high, last - last % high - first)
