"""The computed tensors of an extent, and filling a bucket with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ckpt_transport.memory import copy_bytes
from ckpt_transport_fp8 import cpu
from ckpt_transport_fp8.part import Part


class Computed(ABC):
    """Some parts of an extent, ascending, and the device they are computed on."""

    def __init__(self, parts: Sequence[Part], device: torch.device) -> None:
        self.device, self._parts = device, parts
        self._offsets = [part.offset for part in parts]

    @contextmanager
    def room_for(self, slot: torch.Tensor) -> Iterator[torch.Tensor]:
        """Room on the device for what goes into ``slot``; that is where it is when the context ends."""
        if slot.device == self.device:
            yield slot
            return
        room = torch.empty_like(slot, device=self.device)
        yield room
        copy_bytes(slot, room)

    @abstractmethod
    def fill(self, room: torch.Tensor, offset: int) -> None:
        """Compute what lies at the bytes from ``offset`` on, as many as ``room`` holds; see
        :meth:`ckpt_transport.memory.Backing.fill` for when."""

    def within(self, first: int, last: int) -> Iterator[Part]:
        """The parts that have bytes between ``first`` and ``last``."""
        for number in range(max(bisect_right(self._offsets, first) - 1, 0), len(self._parts)):
            part = self._parts[number]
            if part.offset >= last:
                return
            if part.offset + part.nbytes > first:
                yield part


class OnCpu(Computed):
    """Computed by all cores."""

    def fill(self, room: torch.Tensor, offset: int) -> None:
        end = offset + room.numel()
        parts = self.within(offset, end)
        cpu.run(step for part in parts for step in cpu.cast(part, part.runs(offset, end), room))
