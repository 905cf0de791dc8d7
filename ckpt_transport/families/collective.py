"""Transports where all members call the same broadcast."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch

from ckpt_transport.errors import RegistrationError
from ckpt_transport.families.polled import Operation, Poll, PolledEndpoint
from ckpt_transport.transport import Completion, MemoryRegion, Receipt, Transfer


class CollectiveEndpoint(PolledEndpoint):
    """Write :meth:`_broadcast`. Every member of the route takes part in every transfer."""

    @abstractmethod
    def _broadcast(self, tensor: torch.Tensor, root: int) -> Poll:
        """Start a broadcast of ``tensor`` (uint8, contiguous) from rank ``root``; return what polls its end.

        Broadcasts are started in the same order on every member. The poll says True when the sender may overwrite
        ``tensor``, or the receiver may read it.
        """

    def _send(self, transfer: Transfer, regions: Sequence[MemoryRegion]) -> Completion:
        used = [regions[span.region] for span in transfer.spans]
        polls = [
            self._broadcast(region.slice(span.offset, span.nbytes), transfer.sender)
            for region, span in zip(used, transfer.spans, strict=True)
            if span.nbytes
        ]
        return Operation(self, transfer, polls, used)

    def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
        if region is None:
            raise RegistrationError("a collective receives into memory; give it a region")
        views = [region.slice(span.local, span.nbytes) for span in transfer.spans]
        polls = [self._broadcast(view, transfer.sender) for view in views if view.numel()]
        return Operation(self, transfer, polls, [region], lambda: views)
