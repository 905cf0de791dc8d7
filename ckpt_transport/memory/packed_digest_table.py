"""A packed digest table has a GPU pack strided ranges and compute their digest, in two launches.

As a :class:`~ckpt_transport.memory.CopyTable` it is made once, and is told at each launch where the bytes lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ckpt_transport.memory.copy_table import Addresses, CopyTable
from ckpt_transport.memory.digest_pages import ALIGNMENT
from ckpt_transport.memory.digest_table import DigestedRun, DigestTable
from ckpt_transport.memory.strided_bytes import StridedBytes
from ckpt_transport.memory.strided_range import StridedRange


class PlacedRange(NamedTuple):
    """A strided range in one of several memories.

    Attributes:
        memory: which of them, by number.
        part: where in it.
    """

    memory: int
    part: StridedRange


class PackedDigestTable:
    """The packs of :func:`ckpt_transport.memory.packed_digest.packs`, in their order.

    Args:
        device: the GPU that reads them.
        packs: strided ranges that are packed together, each list for itself.
    """

    def __init__(self, device: torch.device, packs: Iterable[Sequence[PlacedRange]]) -> None:
        self._device = device
        copies: list[tuple[int, ...]] = []
        runs: list[DigestedRun] = []
        end = 0
        for pack in packs:
            start = end = -(-end // ALIGNMENT) * ALIGNMENT
            for memory, part in pack:
                copies.append((memory, part.start, end, part.nbytes, part.runs, part.stride))
                end += part.total
            runs.append(DigestedRun(0, start, end - start))
        self._nbytes = end
        memories, reads, writes, lengths, counts, strides = np.array(copies, np.int64).reshape(-1, 6).T
        strided = StridedBytes(
            memories,
            np.zeros_like(memories),
            reads,
            writes,
            lengths,
            counts[:, None],
            strides[:, None],
            lengths[:, None],
        )
        self._copies, self._digests = CopyTable(device, strided), DigestTable(device, runs)

    def add(self, sums: torch.Tensor, memories: Addresses) -> None:
        """Enqueue adding all pages to both sums, on the current stream of the device, which is the current one."""
        packed = torch.empty(self._nbytes, dtype=torch.uint8, device=self._device)
        here = Addresses(self._device, [packed.data_ptr()])
        self._copies.copy(memories, here)
        self._digests.add(sums, here)
