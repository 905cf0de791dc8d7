"""Runs of host memory are copied in batches, of which several threads take one after the other."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]

BATCH_BYTES = 8 << 20
"""So little that no thread is left alone with much of it, and so much that taking it costs nothing beside copying."""
_SMALL_BYTES = 16 << 10
"""Copying so many bytes takes less time than letting go of the interpreter's lock and getting it back."""


class HostCopy(NamedTuple):
    """Copies one run of bytes, of which somebody else keeps the memory.

    Attributes:
        target, source: the address of its first byte, where it is to be and where it is.
        nbytes: its length.
    """

    target: int
    source: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class HostCopies:
    """Copies many runs of bytes, as columns: there may be a run for each row of a matrix.

    Attributes:
        targets, sources, sizes: those of :class:`HostCopy`; shape ``(runs,)`` each.
    """

    targets: Numbers
    sources: Numbers
    sizes: Numbers

    @classmethod
    def of(cls, copies: Iterable[HostCopy]) -> Self:
        """These copies."""
        columns = np.array(list(copies), np.int64).reshape(-1, 3).T
        return cls(columns[0], columns[1], columns[2])

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def nbytes(self) -> int:
        """Of all runs together."""
        return int(self.sizes.sum())

    def __getitem__(self, some: slice) -> HostCopies:
        return HostCopies(self.targets[some], self.sources[some], self.sizes[some])

    def in_batches(self, nbytes: int = BATCH_BYTES, most: int = sys.maxsize) -> Iterator[HostCopies]:
        """Cut and gather them so that each batch is of at most so many bytes, and runs. Together they are the same."""
        pieces = self._pieces(nbytes)
        ends = np.cumsum(pieces.sizes)
        begin = done = 0
        while begin < len(pieces):
            end = int(np.searchsorted(ends, done + nbytes, side="right"))
            end = min(max(end, begin + 1), begin + most)
            yield pieces[begin:end]
            begin, done = end, int(ends[end - 1])

    def _pieces(self, nbytes: int) -> HostCopies:
        """The same copies, none of which is empty or of more bytes."""
        counts = -(-self.sizes // nbytes)
        if (counts == 1).all():
            return self
        before = np.repeat(np.cumsum(counts) - counts, counts)
        offsets = (np.arange(len(before)) - before) * nbytes
        sizes = np.minimum(np.repeat(self.sizes, counts) - offsets, nbytes)
        return HostCopies(np.repeat(self.targets, counts) + offsets, np.repeat(self.sources, counts) + offsets, sizes)


def copy_batch(batch: HostCopies) -> int:
    """Copy; return how many bytes. Python's lock is let go of, but for runs of a few kilobytes."""
    sizes = batch.sizes.tolist()
    for target, source, nbytes in zip(batch.targets.tolist(), batch.sources.tolist(), sizes, strict=True):
        if nbytes > _SMALL_BYTES:
            ctypes.memmove(target, source, nbytes)
        else:
            _move_at_once(target, source, nbytes)
    return sum(sizes)


def move_each(targets: Sequence[int], sources: Sequence[int], sizes: Sequence[int]) -> None:
    """Copy a few kilobytes from each source over the target in its place; there may be more targets. Python's lock is
    kept.
    """
    for target, source, nbytes in zip(targets, sources, sizes, strict=False):
        _move_at_once(target, source, nbytes)


_move_at_once = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(
    ctypes.cast(ctypes.memmove, ctypes.c_void_p).value or 0
)
