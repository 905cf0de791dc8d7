"""Bytes that are read from another process land where they are to be: in one run for each row, if need be."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self, overload

import numpy as np
import torch

from ckpt_transport.memory.host_copies import Numbers
from ckpt_transport.memory.parts import Parts
from ckpt_transport.memory.runs import MemoryRun, Runs, RunTable, addresses_of, starts_of, views_of

ALIGNMENT = 64
"""Bytes to multiples of which torch aligns memory."""


@dataclass(frozen=True)
class Landing:
    """Where bytes of a bucket are to be in host memory. Some may be wanted twice, and some nowhere.

    Attributes:
        starts: where each run starts in the bucket, in bytes; shape ``(runs,)``, in any order.
        addresses: of the first byte of each. No two runs overlap here.
        sizes: of each, in bytes.
        memory: keeps that memory.
    """

    starts: Numbers
    addresses: Numbers
    sizes: Numbers
    memory: object

    @classmethod
    def of(cls, runs: Runs) -> Self:
        """Each part of a bucket that one of ``runs`` holds, there."""
        found = runs.sizes if isinstance(runs, RunTable) else [run.raw.numel() for run in runs]
        starts, addresses, sizes = (np.array(each, np.int64) for each in (starts_of(runs), addresses_of(runs), found))
        return cls(starts, addresses, sizes, views_of(runs))

    def filled(self) -> Landing:
        """The runs that are not empty."""
        some = self.sizes > 0
        return self if some.all() else Landing(self.starts[some], self.addresses[some], self.sizes[some], self.memory)

    def beside(self, other: Landing) -> Landing:
        """What lands here, and what lands there."""
        return Landing(
            np.concatenate([self.starts, other.starts]),
            np.concatenate([self.addresses, other.addresses]),
            np.concatenate([self.sizes, other.sizes]),
            (self.memory, other.memory),
        )

    def addresses_of(self, parts: Parts) -> tuple[Numbers, Numbers]:
        """Where parts of the bucket land: the address of each, and whether a single run is known to hold it there."""
        starts, addresses, ends = self._ascending
        at, sizes = parts.starts, parts.sizes
        numbers = np.searchsorted(starts, at, side="right") - 1
        held = (numbers >= 0) & (at + sizes <= np.append(ends, 0)[numbers])
        return np.append(addresses - starts, 0)[numbers] + at, held | (sizes == 0)

    @cached_property
    def _ascending(self) -> tuple[Numbers, Numbers, Numbers]:
        order = np.argsort(self.starts, kind="stable")
        starts = self.starts[order]
        return starts, self.addresses[order], starts + self.sizes[order]


class LandedBytes(Sequence[torch.Tensor]):
    """Bytes in host memory, uint8, as views that are made when somebody looks at them.

    Args:
        addresses, sizes: of each.
        memory: keeps that memory.
    """

    def __init__(self, addresses: Sequence[int], sizes: Sequence[int], memory: object) -> None:
        self._addresses, self._sizes, self._memory = addresses, sizes, memory

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> LandedBytes: ...
    def __getitem__(self, index: int | slice) -> torch.Tensor | LandedBytes:
        if isinstance(index, slice):
            return LandedBytes(self._addresses[index], self._sizes[index], self._memory)
        nbytes = self._sizes[index]
        if not nbytes:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer((ctypes.c_uint8 * nbytes).from_address(self._addresses[index]), dtype=torch.uint8)


class Scratch:
    """Memory for parts of one bucket after the other."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def runs(self, places: Sequence[tuple[int, int]]) -> list[MemoryRun]:
        """Memory for these parts, aligned as in the bucket. It is that of the parts before.

        Args:
            places: where each starts in the bucket, and its bytes; ascending.
        """
        runs, starts, end = [], [], 0
        for at, nbytes in places:
            starts.append(end + at % ALIGNMENT)
            end = -(-(starts[-1] + nbytes) // ALIGNMENT) * ALIGNMENT
        if self._memory.numel() < end:
            self._memory = torch.empty(end, dtype=torch.uint8)
        for start, (at, nbytes) in zip(starts, places, strict=True):
            runs.append(MemoryRun(at, self._memory[start : start + nbytes]))
        return runs
