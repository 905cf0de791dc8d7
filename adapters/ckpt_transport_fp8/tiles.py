"""Many matrices on one GPU, described in tables, so that one launch works on all of them, or on all in a bucket."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
import triton.language as tl

from ckpt_transport.spi import align_up
from ckpt_transport_fp8 import kernels
from ckpt_transport_fp8.kernels import TILE
from ckpt_transport_fp8.launch import Launch
from ckpt_transport_fp8.part import Part

WARPS = 8
"""Of the program that works on a tile."""
ALIGNMENT = 16
"""In bytes and in columns, for loads of several elements at once."""
FLOAT = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


class Kind(NamedTuple):
    """What the matrices of one launch have in common.

    Attributes:
        dtype: of the sources.
        per_row: whether every row has groups of its own.
        aligned: whether all rows are aligned if the first is.
    """

    dtype: torch.dtype
    per_row: bool
    aligned: bool


def kind_of(part: Part) -> Kind | None:
    """None when a tile would have parts of several groups in a row or column, or is not quantized."""
    if part.first_group is None or part.dtype is not torch.float8_e4m3fn:
        return None
    (rows, columns), (high, wide) = part.shape, part.group
    fits = (high == 1 or high % TILE == 0 or high >= rows) and (wide % TILE == 0 or wide >= columns)
    return Kind(part.source_dtype, high == 1, columns % ALIGNMENT == 0) if fits else None


class Addresses(NamedTuple):
    """Where the matrices of one version lie.

    Attributes:
        table: their addresses, int64, on the GPU.
        aligned: for each kind of them, whether all are aligned.
    """

    table: torch.Tensor
    aligned: tuple[bool, ...]


class Tiles:
    """Matrices on one GPU, whatever their version: as far as they can be in tables.

    Args:
        parts: what is made of them, ascending in the extent.
        device: the GPU.
    """

    def __init__(self, parts: Sequence[Part], device: torch.device) -> None:
        alike: defaultdict[Kind | None, list[Part]] = defaultdict(list)
        for part in parts:
            alike[kind_of(part)].append(part)
        self._batches: list[_Batch] = []
        self.parts: list[Part] = []
        """Those that are in the tables."""
        tiles = 0
        for kind, together in alike.items():
            if kind is not None:
                self._batches.append(_Batch(kind, together, len(self.parts), tiles))
                self.parts += together
                tiles = self._batches[-1].tiles.stop
        self._numbers = [part.number for part in self.parts]
        counts = [_count(part) for part in self.parts]
        part_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        firsts = accumulate(counts, initial=0)
        entries = [_entry(part, first) for part, first in zip(self.parts, firsts, strict=False)]
        self._tables = torch.from_numpy(part_of).to(device), torch.tensor(entries, dtype=torch.int64, device=device)
        self._device = device

    def addresses(self, tensors: Sequence[torch.Tensor]) -> Addresses:
        """Those of a version that has these tensors."""
        own = map(tensors.__getitem__, self._numbers)
        found = np.fromiter(map(torch.Tensor.data_ptr, own), np.int64, len(self._numbers))
        aligned = tuple(not (found[batch.matrices] % ALIGNMENT).any() for batch in self._batches)
        return Addresses(torch.from_numpy(found).to(self._device), aligned)

    def search(self, found: torch.Tensor, addresses: Addresses) -> None:
        """Put the largest magnitudes into ``found``; see :meth:`ckpt_transport_fp8.computed.Computed.largest`."""
        bits = found.view(torch.int32)
        with torch.cuda.device(self._device):
            for batch, aligned in zip(self._batches, addresses.aligned, strict=True):
                batch.search(bits, (*self._tables, addresses.table), aligned)

    def cast(self, room: torch.Tensor, offset: int, addresses: Addresses, factors: torch.Tensor) -> None:
        """Fill ``room`` with the elements at the bytes from ``offset`` on."""
        for batch, aligned in zip(self._batches, addresses.aligned, strict=True):
            batch.cast(room, offset, (*self._tables, addresses.table), factors, aligned)


class _Batch:
    """Matrices of one kind. They and their tiles are next to each other in the tables, from these numbers on."""

    def __init__(self, kind: Kind, parts: Sequence[Part], first: int, first_tile: int) -> None:
        self._kind, self._parts = kind, parts
        self.matrices = slice(first, first + len(parts))
        self._offsets = [part.offset for part in parts]
        self._first_tiles = list(accumulate(map(_count, parts), initial=first_tile))
        self.tiles = range(first_tile, self._first_tiles[-1])
        bits, magnitude = (tl.int16, 0x7FFF) if kind.dtype.itemsize == 2 else (tl.int32, 0x7FFFFFFF)
        elements = {"FLOAT": FLOAT[kind.dtype], "PER_ROW": kind.per_row}
        self._search = _launches(kernels.search, BITS=bits, MAGNITUDE=magnitude, **elements)
        self._cast = _launches(kernels.cast, **elements)

    def search(self, found: torch.Tensor, tables: tuple[torch.Tensor, ...], aligned: bool) -> None:
        self._search[aligned and self._kind.aligned](len(self.tiles), found, self.tiles.start, *tables)

    def cast(
        self, room: torch.Tensor, offset: int, tables: tuple[torch.Tensor, ...], factors: torch.Tensor, aligned: bool
    ) -> None:
        end = offset + room.numel()
        tiles = self._within(offset, end)
        if not tiles:
            return
        address = room.data_ptr()
        aligned = aligned and self._kind.aligned and not (offset % ALIGNMENT or address % ALIGNMENT)
        if aligned and end % ALIGNMENT:
            last = self._parts[bisect_left(self._offsets, end) - 1]
            cut = end < last.offset + last.nbytes
            aligned, end = not cut, end if cut else align_up(end)
        self._cast[aligned](len(tiles), address, offset, end, tiles.start, *tables, factors)

    def _within(self, begin: int, end: int) -> range:
        """The tiles that have bytes between ``begin`` and ``end``, and others of the same rows of tiles."""
        number = max(bisect_right(self._offsets, begin) - 1, 0)
        until = bisect_left(self._offsets, end)
        if number == until:
            return range(0)
        first = self._tile_at(number, begin - self._offsets[number])
        return range(first, self._tile_at(until - 1, end - self._offsets[until - 1] - 1, after=1))

    def _tile_at(self, number: int, element: int, after: int = 0) -> int:
        """The first tile of the row of tiles that has an element of a matrix, or of one so many rows after."""
        rows, columns = self._parts[number].shape
        down, across = -(-rows // TILE), -(-columns // TILE)
        row = max(element, 0) // columns // TILE + after
        return self._first_tiles[number] + min(row, down) * across


def _launches(kernel: object, **constants: object) -> dict[bool, Launch]:
    """By whether all is aligned."""
    return {aligned: Launch(kernel, WARPS, **constants, ALIGNED=aligned, TILE=TILE) for aligned in (False, True)}


def _count(part: Part) -> int:
    """How many tiles a matrix has."""
    rows, columns = part.shape
    return -(-rows // TILE) * -(-columns // TILE)


def _entry(part: Part, first_tile: int) -> tuple[int, ...]:
    """What the kernels read about a matrix, in the order of :func:`ckpt_transport_fp8.kernels._tile_of`."""
    assert part.first_group is not None
    return first_tile, *part.shape, *part.group, part.grid[1], part.first_group, part.offset
