"""On a GPU a slot is filled with scattered tensors in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from ckpt_transport.memory import Addresses, CopyTable, StridedBytes

KNOWN_LAYOUTS = 8
"""So many layouts are remembered. A trainer's tensors have the same in every version, wherever they lie."""


class Gathering:
    """Gathers tensors into slots on a GPU.

    Args:
        device: the GPU; the tensors lie on it, or where it can read them.
        addresses, sizes: of the tensors, which are contiguous, in bytes.
        offsets: where each starts in the extent, ascending, in bytes.
    """

    def __init__(
        self, device: torch.device, addresses: Sequence[int], sizes: Sequence[int], offsets: Sequence[int]
    ) -> None:
        self._device = device
        self._tables = _tables_of(device, tuple(offsets), tuple(sizes))
        self._sources = Addresses(device, addresses)

    def fill(self, slot: torch.Tensor, offset: int) -> None:
        """Enqueue the gathering of the extent's bytes from ``offset`` on, as many as ``slot`` holds."""
        table = self._tables.of(offset, slot.numel())
        table.copy(self._sources, Addresses(self._device, [slot.data_ptr()]))


class _Tables:
    """A copy table for each range of an extent.

    Args:
        device: where slots are.
        offsets, sizes: of the tensors in the extent, in bytes.
    """

    def __init__(self, device: torch.device, offsets: Sequence[int], sizes: Sequence[int]) -> None:
        self._device = device
        self._offsets, self._sizes = np.array(offsets, np.int64), np.array(sizes, np.int64)
        self._known: dict[tuple[int, int], CopyTable] = {}

    def of(self, offset: int, nbytes: int) -> CopyTable:
        """The table that copies these bytes of the extent, from all tensors to one slot."""
        known = self._known.get((offset, nbytes))
        if known is None:
            known = self._known[offset, nbytes] = CopyTable(self._device, self._copies(offset, offset + nbytes))
        return known

    def _copies(self, begin: int, end: int) -> StridedBytes:
        first = max(int(np.searchsorted(self._offsets, begin, "right")) - 1, 0)
        last = max(int(np.searchsorted(self._offsets, end, "left")), first)
        starts, sizes = self._offsets[first:last], self._sizes[first:last]
        read = np.maximum(begin - starts, 0)
        return StridedBytes.contiguous(
            np.arange(first, last),
            np.zeros(last - first, np.int64),
            read,
            starts + read - begin,
            np.minimum(end - starts, sizes) - read,
        )


_tables_of = lru_cache(KNOWN_LAYOUTS)(_Tables)
