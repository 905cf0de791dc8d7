"""A digest table has a GPU compute the digest of many runs of bytes in one launch.

As a :class:`~ckpt_transport.memory.CopyTable` it is made once, and is told at each launch where the bytes lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from ckpt_transport.memory.copy_table import Addresses
from ckpt_transport.memory.digest_pages import ALIGNMENT, PAGE_BYTES, WARPS, key_table
from ckpt_transport.memory.launch import Launch
from ckpt_transport.memory.table import put, record_use


class DigestedRun(NamedTuple):
    """Contiguous bytes that begin a page of the digest.

    Attributes:
        memory: which memory they are in, by number.
        offset: where they start there, in bytes.
        nbytes: how many there are.
    """

    memory: int
    offset: int
    nbytes: int


class DigestTable:
    """The pages of some runs, in their order.

    Args:
        device: the GPU that reads them.
        runs: as :func:`ckpt_transport.memory.digest.digest` is given them.
    """

    def __init__(self, device: torch.device, runs: Sequence[DigestedRun]) -> None:
        self._device = device
        memory, offset, nbytes = np.array(runs, np.int64).reshape(-1, len(DigestedRun._fields)).T
        self._memory, self._offset = memory, offset
        counts = -(-nbytes // PAGE_BYTES)
        run = np.repeat(np.arange(len(nbytes)), counts)
        begins = (np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)) * PAGE_BYTES
        pages = np.stack([memory[run], offset[run] + begins, nbytes[run] - begins], axis=1)
        self._pages = put(np.ascontiguousarray(pages), device)

    def reads(self, memories: Addresses) -> bool:
        """Whether all runs are aligned, as the kernel needs it, when their memories lie there."""
        starts = np.array(memories.values, np.int64)[self._memory] + self._offset
        return not bool((starts % ALIGNMENT).any())

    def add(self, sums: torch.Tensor, memories: Addresses) -> None:
        """Enqueue adding all pages to both sums, on the current stream of the device, which is the current one."""
        if not len(self._pages):
            return
        record_use(self._pages, memories.table)
        launch = _kernel_on(self._device)
        launch(len(self._pages), sums, memories.base, memories.table, self._pages, key_table(self._device))


@cache
def _kernel_on(device: torch.device) -> Launch:
    """The kernel as it is compiled for one device. Only where Triton is installed it can be imported."""
    from ckpt_transport.memory.digest_kernel import add_listed_pages

    return Launch(add_listed_pages, WARPS)
