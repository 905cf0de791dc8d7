"""Transports where a send is matched with a receive."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch

from ckpt_transport.errors import RegistrationError
from ckpt_transport.transports.interface import Transfer
from ckpt_transport.transports.operations import Completion, MemoryRegion, Receipt
from ckpt_transport.transports.polled import Poll, PolledEndpoint, PolledOperation


class MessageEndpoint(PolledEndpoint):
    """Write :meth:`_send_to` and :meth:`_receive_from`. Messages between two ranks match by ``tag``."""

    @abstractmethod
    def _send_to(self, receiver: int, tag: tuple[int, int], tensor: torch.Tensor) -> Poll:
        """Start sending ``tensor`` (uint8, contiguous). The poll says True when it may be overwritten.

        ``tag`` is (seq of the transfer, index of the span). Sends to one receiver start in the order of their tags.
        """

    @abstractmethod
    def _receive_from(self, sender: int, tag: tuple[int, int], tensor: torch.Tensor) -> Poll:
        """Start receiving into ``tensor``. The poll says True when its bytes may be read."""

    def _send(self, transfer: Transfer, regions: Sequence[MemoryRegion]) -> Completion:
        tensors = self._sources(transfer, regions)
        self._announce(transfer)
        polls = [
            self._send_to(receiver, (transfer.seq, index), tensor)
            for index, tensor in enumerate(tensors)
            for receiver in transfer.receivers
            if tensor.numel()
        ]
        return PolledOperation(self, transfer, polls, [regions[span.region] for span in transfer.spans])

    def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
        if region is None:
            raise RegistrationError("messages are received into memory; give a region")
        views = [region.slice(span.local, span.nbytes) for span in transfer.spans]
        polls = [
            self._receive_from(transfer.sender, (transfer.seq, index), view)
            for index, view in enumerate(views)
            if view.numel()
        ]
        return PolledOperation(self, transfer, [self._agreed(transfer), *polls], [region], lambda: views)
