"""Turns strided copies into what torch does: copies between typed views, with elements as wide as can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ckpt_transport import dtypes
from ckpt_transport.replay.memory_map import begin_of
from ckpt_transport.replay.strided_copy import StridedCopy

WIDEST = 8
"""Bytes of the widest element that bits are copied in."""

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class StridedView(NamedTuple):
    """A strided view of memory: offset and strides in elements of ``dtype``."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


class MemoryViews:
    """The memory of a tensor, of which many views are taken.

    To torch a view of a view costs half of what one of bare memory does.

    Args:
        tensor: whose memory.
        at: which offset its first byte has in views, in bytes.
    """

    def __init__(self, tensor: torch.Tensor, at: int = 0) -> None:
        self._storage, self._begin = tensor.untyped_storage(), begin_of(tensor) - at
        self._typed: dict[torch.dtype, torch.Tensor] = {}

    def at(self, view: StridedView) -> torch.Tensor:
        """One of them."""
        typed = self._typed.get(view.dtype)
        if typed is None:
            empty = torch.empty(0, dtype=view.dtype, device=self._storage.device)
            typed = self._typed[view.dtype] = empty.set_(self._storage, 0, (0,), (1,))
        return typed.as_strided(view.shape, view.strides, self._begin // view.dtype.itemsize + view.offset)


class TorchCopy(NamedTuple):
    """A strided copy as torch does it, from one view to another."""

    target: int
    read: StridedView
    write: StridedView


def torch_copy(copy: StridedCopy, alignment: int) -> TorchCopy:
    """``copy`` in elements as wide as possible.

    Args:
        copy: what to copy.
        alignment: a power of two that divides the addresses of bucket and target.

    Raises:
        ValueError: the memory is not aligned for the types that must be converted.
    """
    if copy.read_dtype != copy.write_dtype:
        of, to = dtypes.TORCH[copy.read_dtype], dtypes.TORCH[copy.write_dtype]
        if alignment % max(of.itemsize, to.itemsize):
            raise ValueError(f"{copy.read_dtype} at an address that is a multiple of {alignment} only")
        return TorchCopy(
            copy.target,
            _view(of, copy.shape, copy.read_strides, copy.read),
            _view(to, copy.shape, copy.write_strides, copy.write),
        )
    size = dtypes.TORCH[copy.write_dtype].itemsize
    shape, reads, writes = list(copy.shape), list(copy.read_strides), list(copy.write_strides)
    run = size
    if shape and reads[-1] == writes[-1] == size:
        run *= shape.pop()
        reads.pop()
        writes.pop()
    unit = min(alignment, WIDEST)
    while any(number % unit for number in (run, copy.read, copy.write, *reads, *writes)):
        unit //= 2
    dtype = BITS[unit]
    bits = (*shape, run // unit)
    return TorchCopy(
        copy.target,
        _view(dtype, bits, (*reads, unit), copy.read),
        _view(dtype, bits, (*writes, unit), copy.write),
    )


def _view(dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int], offset: int) -> StridedView:
    size = dtype.itemsize
    return StridedView(dtype, tuple(shape), tuple(stride // size for stride in strides), offset // size)


def bits_of(view: StridedView) -> StridedView:
    """The same memory as integers."""
    return view._replace(dtype=BITS[view.dtype.itemsize]) if view.dtype.itemsize in BITS else view


def alignment_of(*offsets: int) -> int:
    """The largest power of two, at most WIDEST, that divides all of these."""
    least = WIDEST
    for offset in offsets:
        while offset % least:
            least //= 2
    return least
