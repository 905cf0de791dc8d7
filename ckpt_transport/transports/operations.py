"""A posted operation has an end, and a receive has bytes; it uses regions, which are buffers that an endpoint knows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch

from ckpt_transport.errors import EndpointClosedError, RegionBusyError, TransportError
from ckpt_transport.memory import DistantMemory, Fence, Lendable, lies_within, part_of

if TYPE_CHECKING:
    from ckpt_transport.transports.interface import Descriptor, Endpoint


class Completion(ABC):
    """The pollable end of one posted operation."""

    @abstractmethod
    def done(self) -> bool:
        """Whether the operation is terminal; drives progress.

        A send is terminal when the sender may overwrite the memory. A receive is terminal when its bytes may be read
        by work enqueued on the device from now on. "Enqueued" is never terminal.

        Raises:
            TransferError: it failed.
            PeerLostError: a member that it needs is gone.
            EndpointClosedError: the endpoint was closed or aborted under it.
        """

    def fence(self) -> Fence | None:
        """The end of the operation in the order of a device, once it is enqueued there; None before, and where only
        :meth:`done` tells it.

        Work that waits for the fence may use the bytes as after ``done()``. Only that can tell whether it failed.
        """
        return None


class Receipt(Completion):
    """The completion of a receive, and the way to its bytes."""

    @abstractmethod
    def views(self) -> Sequence[torch.Tensor]:
        """One uint8 tensor per span, in order, valid from ``done()``, and on a device from :meth:`fence` on, until
        :meth:`release`. Read-only."""

    def distant(self) -> DistantMemory | None:
        """Where the bytes are in another process, one run for each span, in order: valid as :meth:`views`, which brings
        them here. None where they are here."""
        return None

    @abstractmethod
    def release(self) -> None:
        """The bytes are not needed any more. Idempotent. Where memory is mapped, this lets the sender reuse it."""


class MemoryRegion:
    """Memory as one endpoint knows it. Made by :meth:`Endpoint.register`, ended by :meth:`close`."""

    def __init__(self, endpoint: Endpoint, memory: Lendable, descriptor: Descriptor) -> None:
        self.memory = memory
        self.descriptor = descriptor
        self._endpoint = endpoint
        self._users = 0
        self._closed = False

    @property
    def place(self) -> Hashable:
        """That of its memory.

        Raises:
            EndpointClosedError: it was closed.
        """
        if self._closed:
            raise EndpointClosedError("this region was closed")
        return self.memory.place

    def check(self, offset: int, nbytes: int) -> None:
        """
        Raises:
            TransportError: it does not hold bytes ``offset`` to ``offset + nbytes``.
        """
        runs = self.memory.runs
        if not lies_within(runs, offset, nbytes):
            raise TransportError(
                f"[{offset}, {offset + nbytes}) lies outside a region of {self.memory.nbytes} bytes in {len(runs)} runs"
            )

    def slice(self, offset: int, nbytes: int) -> torch.Tensor:
        """Bytes ``offset`` to ``offset + nbytes`` as a uint8 tensor, without a copy."""
        if self._closed:
            raise EndpointClosedError("this region was closed")
        self.check(offset, nbytes)
        return part_of(self.memory.runs, offset, nbytes)

    def acquire(self) -> None:
        """An operation uses this region from now on. Called by the endpoint."""
        self._users += 1

    def release(self) -> None:
        """That operation is terminal. Called by the endpoint."""
        self._users -= 1

    @property
    def busy(self) -> bool:
        return self._users > 0

    def close(self) -> None:
        """Undo the registration. The buffer stays with its owner. Idempotent.

        Raises:
            RegionBusyError: an operation still uses it.
        """
        if self._closed:
            return
        if self.busy:
            raise RegionBusyError(
                f"{self._users} operations still use this region; wait for them, or abort the endpoint"
            )
        self._closed = True
        self._endpoint._forget(self)
