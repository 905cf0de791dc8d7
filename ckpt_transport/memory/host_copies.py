"""Runs of host memory are copied in batches, of which several threads take one after the other."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
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

    def __getitem__(self, some: slice) -> HostCopies:
        return HostCopies(self.targets[some], self.sources[some], self.sizes[some])

    def in_batches(self, most: int) -> Iterator[HostCopies]:
        """Cut and gather them so that each batch is of about 8 MiB, and of at most so many runs."""
        pieces = self._pieces()
        ends = np.cumsum(pieces.sizes)
        begin = done = 0
        while begin < len(pieces):
            end = int(np.searchsorted(ends, done + BATCH_BYTES, side="right"))
            end = min(max(end, begin + 1), begin + most)
            yield pieces[begin:end]
            begin, done = end, int(ends[end - 1])

    def _pieces(self) -> HostCopies:
        """The same copies, none of which is empty or larger than a batch."""
        counts = -(-self.sizes // BATCH_BYTES)
        if (counts == 1).all():
            return self
        before = np.repeat(np.cumsum(counts) - counts, counts)
        offsets = (np.arange(len(before)) - before) * BATCH_BYTES
        sizes = np.minimum(np.repeat(self.sizes, counts) - offsets, BATCH_BYTES)
        return HostCopies(np.repeat(self.targets, counts) + offsets, np.repeat(self.sources, counts) + offsets, sizes)


def in_batches(copies: Iterable[HostCopy]) -> Iterator[list[HostCopy]]:
    """Cut and gather copies so that each batch is of about 8 MiB. Together they are the same copies."""
    batch: list[HostCopy] = []
    room = BATCH_BYTES
    for copy in copies:
        target, source, nbytes = copy
        if nbytes <= room:
            batch.append(copy)
            room -= nbytes
            continue
        while nbytes > room:
            batch.append(HostCopy(target, source, room))
            yield batch
            target, source, nbytes = target + room, source + room, nbytes - room
            batch, room = [], BATCH_BYTES
        batch.append(HostCopy(target, source, nbytes))
        room -= nbytes
    if batch:
        yield batch


def copy_batch(batch: Iterable[HostCopy]) -> int:
    """Copy; return how many bytes. Python's lock is let go of, but for runs of a few kilobytes."""
    done = 0
    for target, source, nbytes in batch:
        if nbytes > _SMALL_BYTES:
            ctypes.memmove(target, source, nbytes)
        else:
            _move_at_once(target, source, nbytes)
        done += nbytes
    return done


_move_at_once = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(
    ctypes.cast(ctypes.memmove, ctypes.c_void_p).value or 0
)
