"""Transports where a receiver reads the sender's memory and the sender's processor takes no part."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ckpt_transport.errors import RegistrationError
from ckpt_transport.transports.handshake import HandshakeEndpoint
from ckpt_transport.transports.interface import Control, Descriptor, Group, Transfer
from ckpt_transport.transports.operations import MemoryRegion, Receipt
from ckpt_transport.transports.polled import Poll, PolledOperation


@dataclass(frozen=True, slots=True)
class ReadSpan:
    """One run of bytes to read: from ``offset`` of the region that ``descriptor`` describes into ``into`` (uint8)."""

    descriptor: Descriptor
    offset: int
    into: torch.Tensor


class _Reading:
    """The read of one transfer, started when its sender has announced it."""

    def __init__(self, sender: int, spans: Sequence[ReadSpan], may_start: Poll) -> None:
        self.sender, self.spans, self.may_start = sender, spans, may_start
        self.ended: Poll | None = None


class OneSidedEndpoint(HandshakeEndpoint):
    """Write :meth:`~ckpt_transport.transports.interface.Endpoint._describe` and
    :meth:`_read`; this base owns READY and ACK.

    Whichever operation is polled, every read that may start is started: so the next is under way when one ends.
    """

    def __init__(self, group: Group, control: Control) -> None:
        super().__init__(group, control)
        self._readings: deque[_Reading] = deque()

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
        reading = _Reading(transfer.sender, spans, self._agreed(transfer))
        self._readings.append(reading)

        def ended() -> bool:
            self._start_readings()
            if reading.ended is None or not reading.ended():
                return False
            self._acknowledge(transfer)
            return True

        return PolledOperation(self, transfer, [ended], [region], lambda: views)

    def _start_readings(self) -> None:
        for _ in range(len(self._readings)):
            reading = self._readings.popleft()
            if reading.may_start():
                reading.ended = self._read(reading.sender, reading.spans)
            else:
                self._readings.append(reading)
