"""What is computed of one version, and filling a bucket with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from ckpt_transport.spi import copy_each
from ckpt_transport_fp8 import cpu
from ckpt_transport_fp8.part import Parts


class Computed(ABC):
    """The computed tensors of a version.

    Args:
        parts: of its extent.
        device: where they are computed.
        tensors: all of the version.
    """

    def __init__(self, parts: Parts, device: torch.device, tensors: Sequence[torch.Tensor]) -> None:
        self.device, self._parts, self._tensors = device, parts, tensors

    @abstractmethod
    def largest(self, groups: int) -> torch.Tensor:
        """The largest magnitude of each of so many groups, float32, on ``device``: exact; infinity or NaN where a group
        has one, and 0 where no part has the group."""

    @contextmanager
    def room_for(self, slot: torch.Tensor) -> Iterator[torch.Tensor]:
        """Room on the device for what goes into ``slot``; that is where it is when the context ends."""
        if slot.device == self.device:
            yield slot
            return
        room = torch.empty_like(slot, device=self.device)
        yield room
        copy_each([slot], [room])

    @abstractmethod
    def fill(self, room: torch.Tensor, offset: int, factors: torch.Tensor) -> None:
        """Compute what lies at the bytes from ``offset`` on, as many as ``room`` holds; see
        :meth:`ckpt_transport.memory.Backing.fill` for when.

        Args:
            room: uint8, on ``device``.
            offset: in the extent.
            factors: of all groups, float32, on ``device``.
        """


Compute = Callable[[Sequence[torch.Tensor]], Computed]
"""Given the tensors of a version, what is computed of it."""


class OnCpu(Computed):
    """Computed by all cores."""

    def largest(self, groups: int) -> torch.Tensor:
        found = torch.zeros(groups)
        cpu.largest(self._parts.scaled, self._tensors, found)
        return found

    def fill(self, room: torch.Tensor, offset: int, factors: torch.Tensor) -> None:
        end = offset + room.numel()
        cpu.run(
            step
            for part in self._parts.within(offset, end)
            for step in cpu.cast(part, part.source(self._tensors), factors, part.runs(offset, end), room)
        )
