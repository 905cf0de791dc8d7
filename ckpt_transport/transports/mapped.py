"""Transports where a receiver sees the sender's own memory, so that no byte moves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache

import torch

from ckpt_transport.errors import TransferError
from ckpt_transport.memory import DistantMemory, MemoryRun, PlacedViews, Runs, lies_within, part_of
from ckpt_transport.transports.handshake import HandshakeEndpoint
from ckpt_transport.transports.interface import Control, Descriptor, Group, Span, Transfer
from ckpt_transport.transports.operations import MemoryRegion, Receipt
from ckpt_transport.transports.polled import KNOWN_SPANS, PolledOperation

POLL_SECONDS = 0.25
"""READY and ACK are messages, so nothing ends between two of them."""


class MappedEndpoint(HandshakeEndpoint):
    """Write :meth:`~ckpt_transport.transports.interface.Endpoint._describe` and :meth:`_map`.

    A receiver's slot *is* the sender's, and the receiver's release is the sender's completion. Mappings are kept while
    the sender goes on describing the same memory.
    """

    poll_seconds = POLL_SECONDS

    def __init__(self, group: Group, control: Control) -> None:
        super().__init__(group, control)
        self._mapped: dict[Descriptor, Runs | DistantMemory] = {}
        self._views: dict[int, tuple[Transfer, Sequence[torch.Tensor] | DistantMemory]] = {}
        """What was received, by the identity of the spans: those of a plan come again with each version."""

    @abstractmethod
    def _map(self, sender: int, descriptor: Descriptor) -> torch.Tensor | Runs | DistantMemory:
        """The sender's region in this process: a uint8 tensor, or runs, where the region lies apart. Or where it is in
        the sender's process, if it can be read and not be mapped.

        Called once per descriptor, off the data path.
        """

    def _unmap(self, descriptor: Descriptor) -> None:
        """The mapping of ``descriptor`` is not used any more; override where dropping the tensor is not enough."""

    def _keep(self, descriptor: Descriptor) -> bool:
        """Whether a mapping that no peer describes now may be described again; override to keep some."""
        return False

    def _connect(self, peers: Mapping[int, Sequence[Descriptor]]) -> None:
        if dict(peers) != self._peers:
            self._views.clear()
        super()._connect(peers)
        wanted = {
            descriptor: sender
            for sender, descriptors in peers.items()
            if sender != self.group.rank
            for descriptor in descriptors
        }
        for descriptor in [known for known in self._mapped if known not in wanted and not self._keep(known)]:
            self._drop(descriptor)
        for descriptor, sender in wanted.items():
            if descriptor not in self._mapped:
                mapped = self._map(sender, descriptor)
                self._mapped[descriptor] = (MemoryRun(0, mapped),) if isinstance(mapped, torch.Tensor) else mapped

    def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
        found = self._views_of(transfer)
        distant = found if isinstance(found, DistantMemory) else None
        return PolledOperation(
            self,
            transfer,
            [self._agreed(transfer)],
            views=cache(found.brought) if isinstance(found, DistantMemory) else lambda: found,
            on_release=lambda: self._acknowledge(transfer),
            distant=distant,
        )

    def _views_of(self, transfer: Transfer) -> Sequence[torch.Tensor] | DistantMemory:
        """The bytes of each span, where the sender has them."""
        known = self._views.get(id(transfer.spans))
        if known is not None and known[0].spans is transfer.spans and known[0].sender == transfer.sender:
            return known[1]
        first = self._mapped_of(transfer, transfer.spans[0]) if transfer.spans else ()
        found: Sequence[torch.Tensor] | DistantMemory
        if isinstance(first, DistantMemory):
            found = self._distant_of(transfer, first)
        else:
            found = PlacedViews([self._view_of(transfer, span) for span in transfer.spans])
        if len(self._views) >= KNOWN_SPANS:
            self._views.clear()
        self._views[id(transfer.spans)] = transfer, found
        return found

    def _view_of(self, transfer: Transfer, span: Span) -> torch.Tensor:
        mapped = self._mapped_of(transfer, span)
        if isinstance(mapped, DistantMemory) or not lies_within(mapped, span.offset, span.nbytes):
            raise self._beyond(transfer)
        return part_of(mapped, span.offset, span.nbytes)

    def _distant_of(self, transfer: Transfer, memory: DistantMemory) -> DistantMemory:
        """The bytes of each span, which all lie in ``memory``."""
        addresses = []
        for span in transfer.spans:
            address = memory.address_of(span.offset, span.nbytes)
            if address is None or self._mapped_of(transfer, span) is not memory:
                raise self._beyond(transfer)
            addresses.append(address)
        starts, sizes = zip(*((span.local, span.nbytes) for span in transfer.spans), strict=True)
        return DistantMemory(starts, addresses, sizes, memory.read)

    def _mapped_of(self, transfer: Transfer, span: Span) -> Runs | DistantMemory:
        return self._mapped[self._descriptor(transfer.sender, span.region)]

    def _beyond(self, transfer: Transfer) -> TransferError:
        return TransferError(f"transfer {transfer.seq} reaches beyond the region that rank {transfer.sender} described")

    def _interrupt(self) -> None:
        """Leave mappings as they are: nothing is under way, and what was received may still be read."""

    def _drop(self, descriptor: Descriptor) -> None:
        self._views.clear()
        del self._mapped[descriptor]
        self._unmap(descriptor)

    def _shut(self) -> None:
        for descriptor in list(self._mapped):
            self._drop(descriptor)
