"""Copying host memory with threads that never spin.

``Tensor.copy_`` splits anything above 32 Ki elements over OpenMP threads, which wait for each other by spinning. Where
several processes of a host copy at once, or cores are busy serving, a thread that spins keeps away the one it waits
for, and a copy of 64 KiB was seen to take 16 ms. Here threads take chunks from a common heap until it is empty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

CHUNK_BYTES = 8 << 20

Bytes = npt.NDArray[np.uint8]


class HostCopier:
    """Copies runs of bytes between host tensors.

    Args:
        threads: how many copy at once, the caller's included; by default as many as torch uses.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._helpers = max((threads or torch.get_num_threads()) - 1, 0)
        self._executor = ThreadPoolExecutor(max(self._helpers, 1), "ckpt-transport-copy")

    def copy(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Copy every (target, source) pair: uint8, one-dimensional, contiguous, of equal length, on the host."""
        chunks: deque[tuple[Bytes, Bytes]] = deque()
        for target, source in pairs:
            into, out_of = target.numpy(), source.numpy()
            for start in range(0, into.size, CHUNK_BYTES):
                chunks.append((into[start : start + CHUNK_BYTES], out_of[start : start + CHUNK_BYTES]))
        nbytes = sum(into.size for into, _ in chunks)
        helping = [self._executor.submit(_empty, chunks) for _ in range(min(self._helpers, nbytes // CHUNK_BYTES))]
        _empty(chunks)
        for helper in helping:
            helper.result()


def _empty(chunks: deque[tuple[Bytes, Bytes]]) -> None:
    while True:
        try:
            into, out_of = chunks.popleft()
        except IndexError:
            return
        np.copyto(into, out_of)
