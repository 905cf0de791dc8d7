"""Memory of another process that cannot be mapped is read straight to where its bytes are to be."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple, overload

import torch

from ckpt_transport.memory.host_copies import HostCopy
from ckpt_transport.memory.runs import MemoryRun, Runs, RunTable, places_of

ALIGNMENT = 256
"""Bytes to multiples of which tensors are brought."""

ReadDistant = Callable[[Sequence[HostCopy]], None]
"""Reads from another process, whose addresses the sources are; complete when it returns."""


class DistantMemory(NamedTuple):
    """Runs of memory in another process of this host.

    Attributes:
        starts: where each begins in the region or bucket, ascending, in bytes.
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

    def read_into(self, places: Runs) -> None:
        """Read the bytes that each of ``places`` is for, which lie within one run, into host memory.

        Raises:
            TransferError: they cannot be read; says why.
        """
        if isinstance(places, RunTable) and (places.starts, places.sizes) == (tuple(self.starts), list(self.sizes)):
            self.read(list(map(HostCopy, places.addresses, self.addresses, places.sizes)))
            return
        copies = []
        for at, target, nbytes in places_of(places):
            address = self.address_of(at, nbytes)
            assert address is not None, "a piece lies within a run"
            copies.append(HostCopy(target, address, nbytes))
        self.read(copies)

    def brought(self) -> list[torch.Tensor]:
        """The bytes of each run, in memory of this process. Raises: as :meth:`read_into`."""
        offsets, end = [], 0
        for nbytes in self.sizes:
            offsets.append(end)
            end += -(-nbytes // ALIGNMENT) * ALIGNMENT
        memory = torch.empty(end, dtype=torch.uint8)
        views = [memory[offset : offset + nbytes] for offset, nbytes in zip(offsets, self.sizes, strict=True)]
        self.read([HostCopy(*copy) for copy in zip(map(_address, views), self.addresses, self.sizes, strict=True)])
        return views


class DistantRuns(Sequence[MemoryRun]):
    """The runs of a bucket that lies in another process. Whoever looks at one has all of them brought here.

    Attributes:
        memory: where they are.
    """

    def __init__(self, memory: DistantMemory) -> None:
        self.memory = memory

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
