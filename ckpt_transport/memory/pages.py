"""Brings in the pages of new host memory by several threads at once."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from concurrent.futures import Executor

import torch

from ckpt_transport.memory.libc import libc

CHUNK_BYTES = 16 << 20
_MADV_POPULATE_WRITE = 23


def populate(raw: torch.Tensor, reserve: Callable[[int, int], None], threads: Executor) -> None:
    """Bring in the pages of ``raw``, which is new: what it holds may be lost.

    Whoever writes to it later, or page-locks it, is not held up by the kernel then. Threads that reserve pages of one
    file by ``fallocate`` take turns at a lock of the kernel's; ``madvise`` needs none, from Linux 5.14 on.

    Args:
        raw: host memory: uint8, one-dimensional, contiguous.
        reserve: makes sure that the pages of a range exist, or raises why they cannot; called with its start and its
            length, in bytes, where ``madvise`` has not brought them in.
        threads: do it.
    """
    address, memory, nbytes = raw.data_ptr(), raw.numpy(), raw.numel()

    def bring_in(start: int) -> None:
        end = min(start + CHUNK_BYTES, nbytes)
        first = (address + start) // mmap.PAGESIZE * mmap.PAGESIZE
        if libc().madvise(first, address + end - first, _MADV_POPULATE_WRITE) == 0:
            return
        reserve(start, end - start)
        memory[start : end : mmap.PAGESIZE] = 0

    for _ in threads.map(bring_in, range(0, nbytes, CHUNK_BYTES)):
        pass
