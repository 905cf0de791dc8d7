"""Runs of host memory are copied in batches, of which several threads take one after the other."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from typing import NamedTuple

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
