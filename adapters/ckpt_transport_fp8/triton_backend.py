"""Finds largest magnitudes and casts elements by Triton.

Tables describe many matrices, so that one launch works on all of them, or on all that are in a bucket.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
import triton.language as tl

from ckpt_transport.spi import Launch, align_up
from ckpt_transport_fp8 import triton_kernels
from ckpt_transport_fp8.backend import Computation
from ckpt_transport_fp8.computed_tensor import ComputedTensor
from ckpt_transport_fp8.triton_kernels import TILE

WARPS = 8
"""Of the program that works on a tile."""
ALIGNMENT = 16
"""In bytes and in columns, for loads of several elements at once."""
FLOAT = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def can_compute(tensor: ComputedTensor, device: torch.device) -> bool:
    """Whether the kernels can compute ``tensor`` on ``device``.

    They can where its source lies there, it is quantized, and each tile has one group or one for each of its rows.
    """
    if tensor.source_device != device or tensor.dtype is not torch.float8_e4m3fn:
        return False
    (rows, columns), (high, wide) = tensor.shape, tensor.group
    return (high == 1 or high % TILE == 0 or high >= rows) and (wide % TILE == 0 or wide >= columns)


class TritonBackend:
    """Computes tensors by Triton kernels: a :class:`~ckpt_transport_fp8.backend.Backend`.

    Args:
        tensors: what is computed, ascending in the extent; :func:`can_compute` holds for all.
        device: the GPU.
    """

    def __init__(self, tensors: Sequence[ComputedTensor], device: torch.device) -> None:
        alike: defaultdict[_Kind, list[ComputedTensor]] = defaultdict(list)
        for tensor in tensors:
            alike[_kind_of(tensor)].append(tensor)
        self._batches: list[_Batch] = []
        tabled: list[ComputedTensor] = []
        tiles = 0
        for kind, batch in alike.items():
            self._batches.append(_Batch(kind, batch, len(tabled), tiles))
            tabled += batch
            tiles = self._batches[-1].tiles.stop
        self._numbers = [tensor.number for tensor in tabled]
        counts = [_count(tensor) for tensor in tabled]
        tensor_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        firsts = accumulate(counts, initial=0)
        entries = [_entry(tensor, first) for tensor, first in zip(tabled, firsts, strict=False)]
        self._tables = torch.from_numpy(tensor_of).to(device), torch.tensor(entries, dtype=torch.int64, device=device)
        self._device = device

    def bind(self, sources: Sequence[torch.Tensor]) -> Computation:
        addresses = self._addresses(sources)
        return Computation(partial(self._find_amax, addresses), partial(self._fill, addresses))

    def _addresses(self, sources: Sequence[torch.Tensor]) -> _Addresses:
        own = map(sources.__getitem__, self._numbers)
        found = np.fromiter(map(torch.Tensor.data_ptr, own), np.int64, len(self._numbers))
        aligned = tuple(not (found[batch.matrices] % ALIGNMENT).any() for batch in self._batches)
        return _Addresses(torch.from_numpy(found).to(self._device), aligned)

    def _find_amax(self, addresses: _Addresses, amax: torch.Tensor) -> None:
        bits = amax.view(torch.int32)
        with torch.cuda.device(self._device):
            for batch, aligned in zip(self._batches, addresses.aligned, strict=True):
                batch.find_amax(bits, (*self._tables, addresses.table), aligned)

    def _fill(self, addresses: _Addresses, bucket: torch.Tensor, offset: int, factors: torch.Tensor) -> None:
        for batch, aligned in zip(self._batches, addresses.aligned, strict=True):
            batch.cast(bucket, offset, (*self._tables, addresses.table), factors, aligned)


class _Addresses(NamedTuple):
    """Where the matrices of one version lie.

    Attributes:
        table: their addresses, int64, on the GPU.
        aligned: for each batch of them, whether all are aligned.
    """

    table: torch.Tensor
    aligned: tuple[bool, ...]


class _Kind(NamedTuple):
    """What the matrices of one launch have in common.

    Attributes:
        dtype: of the sources.
        per_row: whether each row has groups of its own.
        aligned: whether all rows are aligned if the first is.
    """

    dtype: torch.dtype
    per_row: bool
    aligned: bool


def _kind_of(tensor: ComputedTensor) -> _Kind:
    return _Kind(tensor.source_dtype, tensor.group[0] == 1, tensor.shape[1] % ALIGNMENT == 0)


class _Batch:
    """Matrices of one kind. They and their tiles are next to each other in the tables, from these numbers on."""

    def __init__(self, kind: _Kind, tensors: Sequence[ComputedTensor], first: int, first_tile: int) -> None:
        self._kind, self._tensors = kind, tensors
        self.matrices = slice(first, first + len(tensors))
        self._offsets = [tensor.offset for tensor in tensors]
        self._first_tiles = list(accumulate(map(_count, tensors), initial=first_tile))
        self.tiles = range(first_tile, self._first_tiles[-1])
        bits, magnitude = (tl.int16, 0x7FFF) if kind.dtype.itemsize == 2 else (tl.int32, 0x7FFFFFFF)
        elements = {"FLOAT": FLOAT[kind.dtype], "PER_ROW": kind.per_row}
        self._find_amax = _launches(triton_kernels.find_amax, BITS=bits, MAGNITUDE=magnitude, **elements)
        self._cast = _launches(triton_kernels.cast, **elements)

    def find_amax(self, amax: torch.Tensor, tables: tuple[torch.Tensor, ...], aligned: bool) -> None:
        self._find_amax[aligned and self._kind.aligned](len(self.tiles), amax, self.tiles.start, *tables)

    def cast(
        self, bucket: torch.Tensor, offset: int, tables: tuple[torch.Tensor, ...], factors: torch.Tensor, aligned: bool
    ) -> None:
        end = offset + bucket.numel()
        tiles = self._within(offset, end)
        if not tiles:
            return
        address = bucket.data_ptr()
        aligned = aligned and self._kind.aligned and not (offset % ALIGNMENT or address % ALIGNMENT)
        if aligned and end % ALIGNMENT:
            cut = end < self._tensors[bisect_left(self._offsets, end) - 1].end
            aligned, end = not cut, end if cut else align_up(end)
        self._cast[aligned](len(tiles), address, offset, end, tiles.start, *tables, factors)

    def _within(self, begin: int, end: int) -> range:
        """Return the tiles that have bytes between ``begin`` and ``end``, and others of the same rows of tiles."""
        number = max(bisect_right(self._offsets, begin) - 1, 0)
        until = bisect_left(self._offsets, end)
        if number == until:
            return range(0)
        first = self._tile_at(number, begin - self._offsets[number])
        return range(first, self._tile_at(until - 1, end - self._offsets[until - 1] - 1, after=1))

    def _tile_at(self, number: int, element: int, after: int = 0) -> int:
        """Return the first tile of the row of tiles that has an element of a matrix, or of one so many rows after."""
        rows, columns = self._tensors[number].shape
        down, across = -(-rows // TILE), -(-columns // TILE)
        row = max(element, 0) // columns // TILE + after
        return self._first_tiles[number] + min(row, down) * across


def _launches(kernel: object, **constants: object) -> dict[bool, Launch]:
    """Return a launch for each answer to whether all is aligned."""
    return {aligned: Launch(kernel, WARPS, **constants, ALIGNED=aligned, TILE=TILE) for aligned in (False, True)}


def _count(tensor: ComputedTensor) -> int:
    """Return how many tiles a matrix has."""
    rows, columns = tensor.shape
    return -(-rows // TILE) * -(-columns // TILE)


def _entry(tensor: ComputedTensor, first_tile: int) -> tuple[int, ...]:
    """Return what the kernels read about a matrix, in the order of ``_tile_of`` in the kernels."""
    return first_tile, *tensor.shape, *tensor.group, tensor.grid[1], tensor.first_group, tensor.offset
