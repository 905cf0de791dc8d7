"""A version may borrow tensors: they stay where they are, and buckets are gathered from them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from ckpt_transport.checkpoint.lent_memory import LentMemory
from ckpt_transport.checkpoint.watched import Watched, Watching
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import (
    CPU,
    Backing,
    ByteViews,
    HostCopies,
    MemoryKind,
    RunTable,
    copy_each,
    copy_runs,
    has_copy_tables,
)
from ckpt_transport.memory.devices import HOST
from ckpt_transport.planning.values.manifest import Conversion, PlacedTensor


class ScatteredTensors:
    """An extent that is laid out as a pool of these tensors would be, without the pool.

    Args:
        views: the bytes of tensors on any devices.
        memory: where they lie.
        watched: what tells that their owner has changed them.

    Attributes:
        place: equal for versions that lie in the same memory.
        device: the UUID of the GPU on which others map them; empty for none.
        reason: why no other process can map them, where they lie on GPUs; empty where nobody could anyway.
    """

    kind = MemoryKind.SCATTERED
    device = HOST

    def __init__(self, views: ByteViews, memory: LentMemory, watched: Watched) -> None:
        self._views, self.watched = views, watched
        self.place, self.nbytes, self.reason = memory, memory.nbytes, memory.reason

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor], offsets: Sequence[int], nbytes: int, watched: Watched) -> Self:
        """Lay these tensors out.

        Args:
            tensors: contiguous, on any devices.
            watched: as above.
            offsets: where each starts in the extent, ascending, in bytes.
            nbytes: size of the extent.
        """
        memory = LentMemory.of(tensors, offsets, nbytes)
        return cls(memory.views_of(tensors), memory, watched)

    @property
    def made_on(self) -> torch.device | None:
        """The one device on which its bytes lie; None for several."""
        return next(iter(self.place.devices)) if len(self.place.devices) == 1 else None

    def only_enqueues(self, device: torch.device) -> bool:
        return self.place.can_gather_on(device)

    def fill(self, slot: torch.Tensor, offset: int) -> None:
        """Gather the bytes from ``offset`` on into ``slot``: one call for all tensors that lie there."""
        if has_copy_tables(slot.device) and self.only_enqueues(slot.device):
            self.place.gathering_on(slot.device).fill(slot, offset)
            return
        if slot.device == CPU and self.place.devices <= {CPU}:
            copy_runs(HostCopies.of(self.place.copies(slot.data_ptr(), offset, slot.numel())))
            return
        end = offset + slot.numel()
        targets: list[torch.Tensor] = []
        sources: list[torch.Tensor] = []
        for number in self.place.between(offset, end):
            tensor, starts = self._views[number], self.place.offsets[number]
            first, last = max(offset - starts, 0), min(end - starts, tensor.numel())
            if first < last:
                targets.append(slot[starts + first - offset : starts + last - offset])
                sources.append(tensor[first:last])
        if targets:
            copy_each(targets, sources)

    def check(self) -> None:
        self.watched.check()


class ExportedTensors(ScatteredTensors):
    """Scattered tensors of one GPU that other processes can map, so that they are sent from where they lie.

    They may also pass through slots, where a receiver cannot map them.
    """

    kind = MemoryKind.EXPORTED

    def __init__(self, views: ByteViews, memory: LentMemory, watched: Watched) -> None:
        super().__init__(views, memory, watched)
        self.device = memory.device
        self.runs = RunTable(memory.offsets, memory.addresses, memory.sizes, self._views)
        self.digests: dict[Hashable, bytes] = {}


class PagedTensors(ExportedTensors):
    """The same, in memory that other processes map once it was handed to them."""

    kind = MemoryKind.PAGED


class ReadableTensors(ExportedTensors):
    """Scattered tensors in private memory of the host, which other processes may be allowed to read.

    They may also pass through slots, where a receiver cannot read them.
    """

    kind = MemoryKind.READABLE


@dataclass(frozen=True, slots=True)
class Loan:
    """Holds what a version can be made of and the store does not own.

    Attributes:
        backing: the one extent; None when this rank has no tensors.
        tensors: where each of them is in it, with 0 as the extent.
        conversions: which of them are computed, and how; see :class:`~ckpt_transport.planning.Manifest`.
        same: which of them are known to have the same bytes; see the same.
        replicated: which of them other sources have, too; see the same.
    """

    backing: Backing | None
    tensors: Sequence[PlacedTensor]
    conversions: Sequence[Conversion] = ()
    same: tuple[tuple[str, ...], ...] = ()
    replicated: tuple[str, ...] = ()


def lent(tensors: Sequence[torch.Tensor], memory: LentMemory, watching: Watching) -> ScatteredTensors | ExportedTensors:
    """The extent of these tensors, which others map or read if they can, watched in that way."""
    views = memory.views_of(tensors)
    watched = Watched.so(watching, tensors, views)
    if memory.device:
        return (PagedTensors if memory.in_pages else ExportedTensors)(views, memory, watched)
    return (ReadableTensors if memory.is_readable else ScatteredTensors)(views, memory, watched)


def check_readable(tensors: Mapping[str, torch.Tensor]) -> None:
    """
    Raises:
        CheckpointError: the bytes of a tensor do not lie in its memory as they are to be sent; names it.
    """
    check_each_readable(tuple(tensors), tuple(tensors.values()))


def check_each_readable(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> None:
    """As :func:`check_readable`."""
    if are_runs_of_bytes(tensors):
        return
    for name, tensor in zip(names, tensors, strict=True):
        if not tensor.is_contiguous():
            raise CheckpointError(f"tensor '{name}' is not contiguous; lend tensor.contiguous(), or register a copy")
        if tensor.is_conj() or tensor.is_neg():
            raise CheckpointError(
                f"tensor '{name}' is a conjugate or negative view, whose memory holds other values; lend "
                "tensor.resolve_conj().resolve_neg(), or register a copy"
            )


def are_runs_of_bytes(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether the memory of each holds its elements, one after the other."""
    kind = torch.Tensor
    return (
        all(map(kind.is_contiguous, tensors))
        and not any(map(kind.is_conj, tensors))
        and not any(map(kind.is_neg, tensors))
    )
