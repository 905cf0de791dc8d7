"""Bytes that are read from another process land where they are to be: in one run for each row, if need be."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch

from ckpt_transport.memory.host_copies import Numbers
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

    def parts(self, places: Sequence[tuple[int, int]]) -> list[torch.Tensor | None]:
        """Bytes of the bucket where they land, uint8; None where no single run is known to hold them.

        The memory is valid for as long as this lives.

        Args:
            places: where they start in the bucket, and how many they are.
        """
        starts, addresses, ends = self._ascending
        at, sizes = np.array(places, np.int64).reshape(-1, 2).T
        numbers = np.searchsorted(starts, at, side="right") - 1
        held = (numbers >= 0) & (at + sizes <= np.append(ends, 0)[numbers])
        where = np.append(addresses - starts, 0)[numbers] + at
        return [
            _bytes_at(address, nbytes) if is_held or not nbytes else None
            for address, nbytes, is_held in zip(where.tolist(), sizes.tolist(), held.tolist(), strict=True)
        ]

    @cached_property
    def _ascending(self) -> tuple[Numbers, Numbers, Numbers]:
        order = np.argsort(self.starts, kind="stable")
        starts = self.starts[order]
        return starts, self.addresses[order], starts + self.sizes[order]


def _bytes_at(address: int, nbytes: int) -> torch.Tensor:
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype=torch.uint8)


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
