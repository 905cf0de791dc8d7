"""Finds which copies of a bucket are runs of bytes, so that these can be read straight to where they are to be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport import dtypes
from ckpt_transport.memory import Landing
from ckpt_transport.replay.strided_copy import StridedCopy, simplified

SHORTEST = 1024
"""Bytes of a run; shorter ones are copied faster than they are read one by one."""
FEW = 16
"""So many runs of a copy are read straight, however short they are."""

Numbers = npt.NDArray[np.int64]


class _Runs(NamedTuple):
    """The runs of one copy."""

    reads: Numbers
    writes: Numbers
    nbytes: int


@dataclass(frozen=True, slots=True)
class StraightCopies:
    """What of a bucket is read straight into targets, and what must come another way.

    Attributes:
        starts: where each run starts in the bucket, in bytes; shape ``(runs,)``.
        targets: the target that it goes to.
        offsets: where it starts there.
        sizes: of each.
        rest: numbers of the copies that are none of these.
        passing: the pieces of the bucket that ``rest`` reads, by their numbers.
    """

    starts: Numbers
    targets: Numbers
    offsets: Numbers
    sizes: Numbers
    rest: tuple[int, ...]
    passing: frozenset[int]

    @classmethod
    def of(cls, copies: Sequence[StridedCopy], pieces: Sequence[tuple[int, int]]) -> StraightCopies:
        """
        Args:
            copies: of one bucket.
            pieces: where each piece that they read starts in the bucket, and its bytes.
        """
        found = [_runs_of(copy) for copy in copies]
        straight = [(copy.target, runs) for copy, runs in zip(copies, found, strict=True) if runs is not None]
        rest = tuple(number for number, runs in enumerate(found) if runs is None)
        read = [_extent(copies[number]) for number in rest]
        passing = frozenset(
            number
            for number, (at, nbytes) in enumerate(pieces)
            if any(begin < at + nbytes and at < end for begin, end in read)
        )
        counts = [len(runs.reads) for _, runs in straight]
        return cls(
            _joined([runs.reads for _, runs in straight]),
            np.repeat(np.array([target for target, _ in straight], np.int64), counts),
            _joined([runs.writes for _, runs in straight]),
            np.repeat(np.array([runs.nbytes for _, runs in straight], np.int64), counts),
            rest,
            passing,
        )

    def landing(self, tensors: Mapping[int, torch.Tensor]) -> Landing:
        """Where the runs are to be, now that the targets lie there."""
        numbers, places = np.unique(self.targets, return_inverse=True)
        memory = [tensors[number] for number in numbers.tolist()]
        begins = np.array([tensor.data_ptr() for tensor in memory], np.int64)
        addresses = begins[places] + self.offsets if memory else self.offsets
        return Landing(self.starts, addresses, self.sizes, memory)


def _runs_of(copy: StridedCopy) -> _Runs | None:
    """Its runs; None where it converts, or they are many and short."""
    if copy.read_dtype != copy.write_dtype:
        return None
    copy = simplified(copy)
    size = dtypes.TORCH[copy.write_dtype].itemsize
    outer = len(copy.shape)
    nbytes = size
    if copy.read_strides[-1] == copy.write_strides[-1] == size:
        outer -= 1
        nbytes *= copy.shape[-1]
    if nbytes < SHORTEST and math.prod(copy.shape[:outer]) > FEW:
        return None
    reads = _offsets(copy.read, copy.shape[:outer], copy.read_strides)
    return _Runs(reads, _offsets(copy.write, copy.shape[:outer], copy.write_strides), nbytes)


def _offsets(first: int, shape: Sequence[int], strides: Sequence[int]) -> Numbers:
    found = np.array([first], np.int64)
    for count, stride in zip(shape, strides, strict=False):
        found = (found[:, None] + np.arange(count) * stride).reshape(-1)
    return found


def _extent(copy: StridedCopy) -> tuple[int, int]:
    """The first byte of the bucket that it reads, and the first one after the last."""
    last = sum((count - 1) * stride for count, stride in zip(copy.shape, copy.read_strides, strict=True))
    return copy.read, copy.read + last + dtypes.TORCH[copy.read_dtype].itemsize


def _joined(columns: Sequence[Numbers]) -> Numbers:
    return np.concatenate(columns) if columns else np.empty(0, np.int64)
