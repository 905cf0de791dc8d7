"""Memory of another process that cannot be mapped is read straight to where its bytes are to be."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple, overload

import numpy as np
import torch

from ckpt_transport.memory.host_copies import HostCopies, HostCopy
from ckpt_transport.memory.landing import LandedBytes, Landing, Scratch
from ckpt_transport.memory.parts import NO_PARTS, Parts
from ckpt_transport.memory.runs import MemoryRun, PlacedRuns, RunTable

ReadDistant = Callable[[HostCopies], None]
"""Reads from another process, whose addresses the sources are; complete when it returns."""


class DistantMemory(NamedTuple):
    """Runs of memory in another process of this host.

    Attributes:
        starts: where each begins in the region or bucket, in bytes.
        addresses: of each, in that process.
        sizes: of each, in bytes.
        read: reads there.
    """

    starts: Sequence[int]
    addresses: Sequence[int]
    sizes: Sequence[int]
    read: ReadDistant

    def address_of(self, at: int, nbytes: int) -> int | None:
        """Where these bytes of the region are in that process; None where no run holds all of them."""
        if not nbytes:
            return 0
        number = bisect_right(self.starts, at) - 1
        if number < 0 or nbytes < 0 or at + nbytes > self.starts[number] + self.sizes[number]:
            return None
        return self.addresses[number] + at - self.starts[number]

    def read_into(self, landing: Landing, compared: Parts = NO_PARTS) -> RunTable:
        """Read bytes, each run of which lies within one run there, to where they are to be. Runs there ascend.

        Args:
            landing: where that is.
            compared: parts of the region that somebody looks at; ascending.

        Returns: these parts, where they have landed as one run; others are read once more beside that.

        Raises:
            TransferError: they cannot be read; says why.
        """
        addresses, has_landed = landing.addresses_of(compared)
        apart = np.flatnonzero(~has_landed)
        scratch = Scratch().runs([compared[number] for number in apart])
        addresses[apart] = [run.raw.data_ptr() for run in scratch]
        self._read_into(landing.beside(Landing.of(scratch)) if scratch else landing)
        lie, sizes = addresses.tolist(), compared.sizes.tolist()
        return RunTable(compared.starts.tolist(), lie, sizes, LandedBytes(lie, sizes, (landing.memory, scratch)))

    def _read_into(self, landing: Landing) -> None:
        landing = landing.filled()
        if not len(landing.starts):
            return
        columns = np.array([self.starts, self.addresses, self.sizes], np.int64)
        starts, addresses, sizes = columns[:, columns[2] > 0]
        number = np.searchsorted(starts, landing.starts, side="right") - 1
        offsets = landing.starts - starts[number]
        within = (number >= 0) & (offsets + landing.sizes <= sizes[number])
        assert within.all(), "what lands in a run lies within one run there"
        self.read(HostCopies(landing.addresses, addresses[number] + offsets, landing.sizes))

    def brought(self) -> list[torch.Tensor]:
        """The bytes of each run, in memory of this process. Raises: as :meth:`read_into`."""
        here = [run.raw for run in Scratch().runs(list(zip(self.starts, self.sizes, strict=True)))]
        self.read(HostCopies.of(map(HostCopy, map(_address, here), self.addresses, self.sizes)))
        return here


class DistantRuns(PlacedRuns):
    """The runs of a bucket that lies in another process. Whoever looks at one has all of them brought here.

    Attributes:
        memory: where they are.
    """

    def __init__(self, memory: DistantMemory) -> None:
        self.memory, self.starts = memory, tuple(memory.starts)

    @cached_property
    def _here(self) -> RunTable:
        views = self.memory.brought()
        return RunTable(self.memory.starts, list(map(_address, views)), self.memory.sizes, views)

    def __len__(self) -> int:
        return len(self.memory.starts)

    @overload
    def __getitem__(self, index: int) -> MemoryRun: ...
    @overload
    def __getitem__(self, index: slice) -> RunTable: ...
    def __getitem__(self, index: int | slice) -> MemoryRun | RunTable:
        return self._here[index]


_address = torch.Tensor.data_ptr
