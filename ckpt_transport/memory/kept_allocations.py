"""Tells whether allocations of a GPU were freed, mostly in one question: torch counts what it gives back to CUDA.

Source: torch's CUDACachingAllocator, which frees memory with ``empty_cache`` and where it has run out of it, and
counts that in ``torch.cuda.memory_stats``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ckpt_transport.memory.exported import GpuAllocation, are_there


class _Counts(NamedTuple):
    """How often torch has had memory of a GPU from CUDA, and given it back."""

    taken: int
    given_back: int


class KeptAllocations:
    """Some allocations of one GPU. While torch has given nothing back to CUDA, those that it has are there; CUDA is
    asked for those of others.

    Args:
        device: the GPU.

    Make it before the allocations are looked for, and give it what was found.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._counts = device, _counts_of(device)
        self.allocations: Sequence[GpuAllocation] = ()
        self._of_others: Sequence[GpuAllocation] | None = None

    @property
    def are_there(self) -> bool:
        """Whether none of them was freed, whatever has come to its address."""
        counts = _counts_of(self._device)
        if counts is not None and counts == self._counts:
            if self._of_others is None:
                self._of_others = _not_of_torch(self.allocations, self._device)
            return are_there(self._of_others)
        if not are_there(self.allocations):
            return False
        self._counts = counts
        return True


def _counts_of(device: torch.device) -> _Counts | None:
    """None where torch does not count, as with an allocator that is not its own."""
    try:
        stats = torch.cuda.memory_stats_as_nested_dict(device)
    except RuntimeError:
        return None
    if "num_device_alloc" not in stats or "num_device_free" not in stats:
        return None
    return _Counts(stats["num_device_alloc"], stats["num_device_free"])


def _not_of_torch(allocations: Sequence[GpuAllocation], device: torch.device) -> list[GpuAllocation]:
    """Those that torch's allocator does not have."""
    try:
        found = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    except RuntimeError:
        return list(allocations)
    segments = sorted(
        (segment["address"], segment["address"] + segment["total_size"])
        for segment in found
        if segment["device"] == device.index
    )
    begins = [begin for begin, _ in segments]

    def has(allocation: GpuAllocation) -> bool:
        number = bisect_right(begins, allocation.address) - 1
        return number >= 0 and allocation.address + allocation.nbytes <= segments[number][1]

    return [allocation for allocation in allocations if not has(allocation)]
