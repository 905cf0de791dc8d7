"""Transports where a receiver reads the sender's memory and the sender's processor takes no part."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ckpt_transport.errors import RegistrationError
from ckpt_transport.families.handshake import HandshakeEndpoint
from ckpt_transport.families.polled import Operation, Poll
from ckpt_transport.transport import Descriptor, MemoryRegion, Receipt, Transfer


@dataclass(frozen=True, slots=True)
class ReadSpan:
    """One run of bytes to read: from ``offset`` of the region that ``descriptor`` describes into ``into`` (uint8)."""

    descriptor: Descriptor
    offset: int
    into: torch.Tensor


class OneSidedEndpoint(HandshakeEndpoint):
    """Write :meth:`~ckpt_transport.transport.Endpoint._describe` and :meth:`_read`; this base owns READY and ACK."""

    @abstractmethod
    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        """Start reading the scatter list from ``sender``. The poll says True when all bytes may be read here."""

    def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
        if region is None:
            raise RegistrationError("a one-sided read needs memory to read into; give it a region")
        views = [region.slice(span.local, span.nbytes) for span in transfer.spans]
        spans = [
            ReadSpan(self._descriptor(transfer.sender, span.region), span.offset, view)
            for span, view in zip(transfer.spans, views, strict=True)
            if span.nbytes
        ]
        reading: list[Poll] = []
        agreed = self._agreed(transfer)

        def started() -> bool:
            if not agreed():
                return False
            reading.append(self._read(transfer.sender, spans))
            return True

        def finished() -> bool:
            if not reading[0]():
                return False
            self._acknowledge(transfer)
            return True

        return Operation(self, transfer, [started, finished], [region], lambda: views)
