"""Tensors of a GPU reach a pool in few long copies: a kernel gathers them into a staging buffer first.

The copy engine is then busy with one copy after the other, whatever the tensors' number, and the host does something
for each copy, not for each tensor.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from ckpt_transport.checkpoint.gathering import Gathering
from ckpt_transport.memory import Fence, fence_on, stream_for

RUN_BYTES = 64 << 20
"""Of a copy at most: it takes a thousand times as long as enqueuing it."""
GAP_BYTES = 256
"""Tensors that lie closer than that have nothing between them: whatever is in a pool begins at multiples of it."""


class PoolRun(NamedTuple):
    """A range of a pool that holds nothing but what is gathered into it.

    Attributes:
        start, nbytes: where it is, in bytes.
        tensor_bytes: how many of them are of tensors.
    """

    start: int
    nbytes: int
    tensor_bytes: int


def runs_of(offsets: Sequence[int], sizes: Sequence[int], longest: int = RUN_BYTES) -> list[PoolRun]:
    """The runs of a pool that tensors take, none longer than ``longest`` bytes: tensors are cut.

    Args:
        offsets, sizes: of the tensors in the pool, in bytes; ascending, and none of them empty.
    """
    starts, nbytes = np.array(offsets, np.int64), np.array(sizes, np.int64)
    ends = starts + nbytes
    before = np.concatenate([[0], nbytes.cumsum()])

    def taken_before(at: int) -> int:
        number = max(int(np.searchsorted(starts, at)) - 1, 0)
        return int(before[number] + min(max(at - int(starts[number]), 0), int(nbytes[number])))

    apart = np.flatnonzero(starts[1:] - ends[:-1] >= GAP_BYTES) + 1
    runs = []
    for first, last in pairwise([0, *apart.tolist(), len(starts)]):
        for start in range(int(starts[first]), int(ends[last - 1]), longest):
            end = min(start + longest, int(ends[last - 1]))
            runs.append(PoolRun(start, end - start, taken_before(end) - taken_before(start)))
    return runs


class GatheredCopies:
    """Copies tensors of one GPU into a pool. What it enqueues comes after the caller's current stream there.

    Args:
        tensors: contiguous, of plain values, none of them empty.
        offsets: where each goes in the pool, ascending, in bytes.
        pool: uint8, one-dimensional; page-locked, or the host waits for each copy.

    Raises:
        torch.OutOfMemoryError: the GPU has no memory for two staging buffers.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], offsets: Sequence[int], pool: torch.Tensor) -> None:
        device, sizes = tensors[0].device, [tensor.nbytes for tensor in tensors]
        runs = runs_of(offsets, sizes)
        self._left, self._pool = deque(runs), pool
        self._gathers, self._copies = torch.cuda.current_stream(device), stream_for("copies into pools", device)
        self._gathering = Gathering(device, [tensor.data_ptr() for tensor in tensors], sizes, offsets)
        longest = max(run.nbytes for run in runs)
        self._staging = deque(torch.zeros(longest, dtype=torch.uint8, device=device) for _ in runs[:2])
        self._read: deque[Fence | None] = deque(None for _ in self._staging)
        """For each buffer, when it has been copied."""
        self._enqueuing = threading.Lock()

    def tasks(self) -> list[Callable[[], int]]:
        """One for each run, for any threads; each ends when bytes are there, and returns how many."""
        return [self._copy_next] * len(self._left)

    def _copy_next(self) -> int:
        with self._enqueuing:
            run = self._left.popleft()
            copied = self._enqueue(run)
        copied.synchronize()
        return run.tensor_bytes

    def _enqueue(self, run: PoolRun) -> Fence:
        staged, read = self._staging[0][: run.nbytes], self._read.popleft()
        self._staging.rotate(-1)
        if read is not None:
            read.wait(self._gathers)
        with torch.cuda.stream(self._gathers):
            self._gathering.fill(staged, run.start)
        fence_on(self._gathers).wait(self._copies)
        with torch.cuda.stream(self._copies):
            self._pool[run.start : run.start + run.nbytes].copy_(staged, non_blocking=True)
        copied = fence_on(self._copies)
        self._read.append(copied)
        return copied
