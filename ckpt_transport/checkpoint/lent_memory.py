"""Tensors that are lent at each step of a training run lie in the same memory; what is known of that outlives them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence

import torch

from ckpt_transport.checkpoint.gathering import Gathering
from ckpt_transport.errors import RegistrationError
from ckpt_transport.memory import (
    CPU,
    ByteViews,
    HostCopy,
    KeptAllocations,
    can_read,
    find_allocations,
    has_copy_tables,
    why_no_pages,
    why_not_readable,
)
from ckpt_transport.memory.devices import HOST, name_of


class LentMemory:
    """Where contiguous tensors lie, and where in an extent they are. It keeps none of them.

    Args:
        devices: on which they lie; what is empty lies nowhere.
        offsets: where each starts in the extent, ascending, in bytes.
        nbytes: size of the extent.
        addresses, sizes: of the tensors, in bytes.
        gathered: why it is gathered, and not read where it lies; empty where it may be read there.

    Attributes:
        device: the UUID of the GPU on which others can map all of them; empty for none.
        in_pages: some of them are mapped as open files that are handed over.
        reason: why no other process can map them, where they lie on GPUs, or read them elsewhere; empty otherwise.
    """

    def __init__(
        self,
        devices: Collection[torch.device],
        offsets: Sequence[int],
        nbytes: int,
        addresses: Sequence[int],
        sizes: Sequence[int],
        gathered: str = "",
    ) -> None:
        self.offsets, self.nbytes, self.addresses, self.sizes = offsets, nbytes, addresses, sizes
        self.gathered = gathered
        self.devices = frozenset(devices)
        self._gatherings: dict[torch.device, Gathering] = {}
        self._begins: Sequence[int] | None = None
        self._allocations: KeptAllocations | None = None
        self.device, self.reason, self.in_pages = HOST, gathered, False
        if gathered:
            return
        if any(device.type == "cuda" for device in self.devices):
            self._find_allocations()
        elif self.devices:
            self.reason = why_not_readable()

    @property
    def is_readable(self) -> bool:
        """Whether all of them lie in host memory that other processes may be allowed to read."""
        return self.devices == {CPU} and not self.reason

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor], offsets: Sequence[int], nbytes: int, gathered: str = "") -> LentMemory:
        """Where these tensors lie now."""
        addresses = list(map(torch.Tensor.data_ptr, tensors))
        devices = {tensor.device for tensor in tensors if tensor.nbytes}
        return cls(devices, offsets, nbytes, addresses, [tensor.nbytes for tensor in tensors], gathered)

    def views_of(self, tensors: Sequence[torch.Tensor]) -> ByteViews:
        """The bytes of these tensors, which lie in it. Where memory begins is asked once: it mostly is the same."""
        views = ByteViews(tensors, self.addresses, self.sizes, self._begins)
        self._begins = views.begins
        return views

    @property
    def is_there(self) -> bool:
        """Whether what others map of it was not freed meanwhile, although something lies at its addresses."""
        return self._allocations is None or self._allocations.are_there

    def can_gather_on(self, device: torch.device) -> bool:
        """Whether that GPU gathers the tensors into its slots: they lie on it, or on one other whose memory it reads.

        Pages that torch maps itself, as those of ``expandable_segments``, another GPU cannot read so.
        """
        if self.devices == {device}:
            return True
        is_exported = bool(self.device) and not self.in_pages
        return is_exported and has_copy_tables(device) and can_read(device, next(iter(self.devices)))

    def gathering_on(self, device: torch.device) -> Gathering:
        """Gathers the tensors into slots on that GPU, which can."""
        known = self._gatherings.get(device)
        if known is None:
            known = self._gatherings[device] = Gathering(device, self.addresses, self.sizes, self.offsets)
        return known

    def copies(self, address: int, offset: int, nbytes: int) -> Iterator[HostCopy]:
        """What brings the extent's bytes from ``offset`` on to ``address``, all of it host memory."""
        end = offset + nbytes
        for number in self.between(offset, end):
            start = self.offsets[number]
            first, last = max(offset - start, 0), min(end - start, self.sizes[number])
            if first < last:
                yield HostCopy(address + start + first - offset, self.addresses[number] + first, last - first)

    def between(self, offset: int, end: int) -> range:
        """The numbers of the tensors that may have bytes of this range of the extent."""
        first = max(bisect_right(self.offsets, offset) - 1, 0)
        return range(first, max(bisect_left(self.offsets, end), first))

    def _find_allocations(self) -> None:
        places = [(address, size) for address, size in zip(self.addresses, self.sizes, strict=True) if size]
        kept = KeptAllocations(next(device for device in self.devices if device.type == "cuda"))
        try:
            kept.allocations = find_allocations(self.devices, places)
        except RegistrationError as error:
            self.reason = str(error)
            return
        (device,) = self.devices
        self.in_pages = any(each.in_pages for each in kept.allocations)
        self.reason = why_no_pages(device) if self.in_pages else ""
        if not self.reason:
            self._allocations, self.device = kept, name_of(device)
