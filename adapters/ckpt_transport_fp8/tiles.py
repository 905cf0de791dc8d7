"""Many matrices on one GPU, described in tables, so that one launch works on all of them, or on all in a bucket."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
import triton.language as tl

from ckpt_transport_fp8 import kernels
from ckpt_transport_fp8.kernels import TILE
from ckpt_transport_fp8.part import Part

ALIGNMENT = 16
"""In bytes and in columns, for loads of several elements at once."""
Kind = tuple[torch.dtype, bool, bool]
"""Dtype of the sources, whether every row has groups of its own, and whether all are aligned."""


def kind_of(matrix: torch.Tensor, group: tuple[int, int]) -> Kind | None:
    """Which matrices can be in one table; None when a tile would have parts of several groups in a row or column."""
    (rows, columns), (high, wide) = matrix.shape, group
    fits = (high == 1 or high % TILE == 0 or high >= rows) and (wide % TILE == 0 or wide >= columns)
    aligned = matrix.data_ptr() % ALIGNMENT == 0 and columns % ALIGNMENT == 0
    return (matrix.dtype, high == 1, aligned) if fits else None


class Tiles:
    """Matrices of one kind.

    Args:
        kind: of all of them.
        matrices, groups: shape ``(rows, columns)``, contiguous, on ``device``; rows and columns of their groups.
        device: a CUDA device.
    """

    def __init__(
        self, kind: Kind, matrices: Sequence[torch.Tensor], groups: Sequence[tuple[int, int]], device: torch.device
    ) -> None:
        self._dtype, self._per_row, self._aligned = kind
        self._matrices, self._device = matrices, device
        shapes = [tuple(matrix.shape) for matrix in matrices]
        self.grids = [
            (-(-rows // high), -(-columns // wide))
            for (rows, columns), (high, wide) in zip(shapes, groups, strict=True)
        ]
        counts = [-(-rows // TILE) * -(-columns // TILE) for rows, columns in shapes]
        self._tiles = sum(counts)
        self.first_tiles = [0, *accumulate(counts)]
        self._first_groups = [0, *accumulate(down * across for down, across in self.grids)]
        part_of = torch.repeat_interleave(torch.arange(len(counts), dtype=torch.int32), torch.tensor(counts))
        self._tables = (
            part_of.to(device),
            self._table(self.first_tiles[:-1]),
            self._table([rows for rows, _ in shapes]),
            self._table([columns for _, columns in shapes]),
            self._table([matrix.data_ptr() for matrix in matrices]),
            self._table([high for high, _ in groups]),
            self._table([wide for _, wide in groups]),
            self._table(self._first_groups[:-1]),
        )

    def _table(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def largest(self) -> list[torch.Tensor]:
        """As :func:`ckpt_transport_fp8.cpu.largest`."""
        found = torch.zeros(self._first_groups[-1], dtype=torch.int32, device=self._device)
        narrow = self._dtype.itemsize == 2
        bits, magnitude = (tl.int16, 0x7FFF) if narrow else (tl.int32, 0x7FFFFFFF)
        launch: Any = kernels.search[(self._tiles,)]
        launch(
            found,
            *self._tables,
            BITS=bits,
            MAGNITUDE=magnitude,
            PER_ROW=self._per_row,
            ALIGNED=self._aligned,
            TILE=TILE,
            num_warps=8,
        )
        whole = found.cpu()
        values = (whole.to(torch.int16) if narrow else whole).view(self._dtype).to(torch.float32)
        sizes = [down * across for down, across in self.grids]
        return [part.view(grid) for part, grid in zip(torch.split(values, sizes), self.grids, strict=True)]

    def caster(self, offsets: Sequence[int], factors: Sequence[torch.Tensor]) -> Callable[[torch.Tensor, int], None]:
        """What fills ``room`` with the elements at the bytes from ``offset`` on.

        Args:
            offsets: of each matrix's elements in the extent, ascending, in bytes.
            factors: of each matrix, as in a :class:`Part`.
        """
        places = self._table(offsets)
        flat = torch.cat([each.reshape(-1) for each in factors]).to(self._device)
        float_type = {
            torch.bfloat16: tl.bfloat16,
            torch.float16: tl.float16,
            torch.float32: tl.float32,
        }[self._dtype]

        def cast(room: torch.Tensor, offset: int) -> None:
            end = offset + room.numel()
            first, last = self._tiles_within(offsets, offset, end)
            if first >= last:
                return
            launch: Any = kernels.cast[(last - first,)]
            launch(
                room,
                offset,
                end,
                first,
                *self._tables,
                places,
                flat,
                FLOAT=float_type,
                PER_ROW=self._per_row,
                ALIGNED=self._aligned and offset % ALIGNMENT == 0,
                TILE=TILE,
                num_warps=8,
            )

        return cast

    def _tiles_within(self, offsets: Sequence[int], begin: int, end: int) -> tuple[int, int]:
        """The tiles that have bytes between ``begin`` and ``end``: from the first to before the last."""
        number = max(bisect_right(offsets, begin) - 1, 0)
        until = bisect_left(offsets, end)
        if number == until:
            return 0, 0
        first = self._tile_at(number, begin - offsets[number])
        last = self._tile_at(until - 1, end - offsets[until - 1] - 1, after=1)
        return first, last

    def _tile_at(self, number: int, element: int, after: int = 0) -> int:
        """The first tile of the row of tiles that has an element of a matrix, or of one so many rows after."""
        rows, columns = self._matrices[number].shape
        down, across = -(-rows // TILE), -(-columns // TILE)
        row = max(element, 0) // columns // TILE + after
        return self.first_tiles[number] + min(row, down) * across


def by_kind(parts: Sequence[Part]) -> tuple[dict[Kind, list[Part]], list[Part]]:
    """The parts that can be in tables, and the rest."""
    together: defaultdict[Kind, list[Part]] = defaultdict(list)
    rest: list[Part] = []
    for part in parts:
        kind = kind_of(part.source, part.group) if part.factors is not None else None
        if kind is None or part.dtype is not torch.float8_e4m3fn:
            rest.append(part)
        else:
            together[kind].append(part)
    return together, rest
