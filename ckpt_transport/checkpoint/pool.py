"""A pool is memory for copied tensors that is kept from one version to the next."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack

from ckpt_transport.errors import SharedMemoryError, StoreError
from ckpt_transport.memory import Buffer, MemoryKind, Segment, free_on_host
from ckpt_transport.planning.values.alignment import ALIGNMENT, align_up

logger = logging.getLogger(__name__)


def lay_out(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Put tensors one after another, each at a multiple of 256 bytes.

    Args:
        sizes: of the tensors, in bytes.

    Returns:
        Their offsets in bytes, and the size of the pool that holds them: a multiple of 256, and not 0.
    """
    offsets: list[int] = []
    end = 0
    for size in sizes:
        offsets.append(end)
        end = align_up(end + size)
    return offsets, max(end, ALIGNMENT)


class Pools:
    """Makes the pools of one store, and keeps those of at most one version that are free.

    A pool that is given back waits for the next :meth:`take`. If that asks for the same size, it gets it, pages, name
    and registrations with transports included; any other size releases what is free first, so that it does not stand
    in the way.

    Args:
        kind: of memory; None for shared memory where ``/dev/shm`` has room, and else private memory.
        pinned: page-lock it.
        threads: bring in the pages of new pools.
    """

    def __init__(self, kind: MemoryKind | None, *, pinned: bool, threads: Executor) -> None:
        self._kind, self._pinned, self._threads = kind, pinned, threads
        self._free: list[Buffer] = []

    def take(self, nbytes: int, undo: ExitStack) -> Buffer:
        """A pool of exactly ``nbytes``, whose pages are there, and locked where they are to be.

        Args:
            nbytes: its size.
            undo: learns how to go back to the state before this call.

        Raises:
            SharedMemoryError: ``/dev/shm`` has no room for it, and it is to be there or the host has none either.
            StoreError: it is to be private memory, and the host has not as much, or this process may not have it.
        """
        for number, free in enumerate(self._free):
            if free.nbytes == nbytes:
                del self._free[number]
                undo.callback(self._free.append, free)
                return free
        self.close()
        made = self._make(nbytes)
        undo.callback(_release, made)
        if self._pinned:
            made.pin()
        return made

    def _make(self, nbytes: int) -> Buffer:
        if self._kind is not MemoryKind.PRIVATE:
            try:
                return self._populated(Buffer.of(Segment.create(nbytes)))
            except SharedMemoryError as error:
                if self._kind is MemoryKind.SHARED:
                    raise SharedMemoryError(f"{error}; or set pool to 'auto' or 'private'") from error
                if (free := free_on_host()) < nbytes:
                    raise SharedMemoryError(f"{error}; nor has the host's memory, with {free:,} bytes free") from error
                logger.warning("the version is kept in private memory, and sent from copies of its parts: %s", error)
        elif (free := free_on_host()) < nbytes:
            raise StoreError(f"a version of {nbytes:,} bytes cannot be taken in: the host has {free:,} bytes free")
        try:
            made = Buffer.private(nbytes)
        except RuntimeError as error:
            raise StoreError(
                f"this process cannot have {nbytes:,} bytes for a version; look at its limits, as 'ulimit -v' says them"
            ) from error
        return self._populated(made)

    def _populated(self, made: Buffer) -> Buffer:
        try:
            made.populate(self._threads)
        except BaseException:
            _release(made)
            raise
        return made

    def give_back(self, buffers: Sequence[Buffer]) -> None:
        """No version uses ``buffers`` any more; they take the place of the free pools there were."""
        self.close()
        for buffer in buffers:
            buffer.digests.clear()
        self._free.extend(buffers)

    def close(self) -> None:
        """Release the free pools. Idempotent."""
        while self._free:
            _release(self._free.pop())


def _release(buffer: Buffer) -> None:
    if buffer.segment is not None:
        buffer.segment.close()
