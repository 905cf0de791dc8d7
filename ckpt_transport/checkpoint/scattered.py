"""A version may borrow tensors: they stay where they are, and buckets are gathered from them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from ckpt_transport.checkpoint.gathering import Gathering
from ckpt_transport.checkpoint.watched import Watched
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import Backing, MemoryKind, MemoryRun, copy_each, has_copy_tables, name_of, why_not_exported
from ckpt_transport.memory.devices import HOST
from ckpt_transport.planning.values.manifest import Conversion, PlacedTensor


class ScatteredTensors:
    """An extent that is laid out as a pool of these tensors would be, without the pool.

    Args:
        tensors: uint8, one-dimensional, contiguous, on any devices.
        offsets: where each starts in the extent, ascending, in bytes.
        nbytes: size of the extent.
        watched: what tells that their owner has changed them.
        reason: why no other process can map them, where they lie on GPUs; empty where nobody could anyway.

    Attributes:
        device: the UUID of the GPU on which others map them; empty for none.
    """

    kind = MemoryKind.SCATTERED
    device = HOST

    def __init__(
        self,
        tensors: Sequence[torch.Tensor],
        offsets: Sequence[int],
        nbytes: int,
        watched: Watched,
        reason: str = "",
    ) -> None:
        self._tensors, self._offsets, self._watched = tensors, offsets, watched
        self.nbytes, self.reason = nbytes, reason
        self._devices = {tensor.device for tensor in tensors}

    def only_enqueues(self, device: torch.device) -> bool:
        return self._devices == {device}

    def fill(self, slot: torch.Tensor, offset: int) -> None:
        """Gather the bytes from ``offset`` on into ``slot``: one call for all tensors that lie there."""
        if has_copy_tables(slot.device) and self.only_enqueues(slot.device):
            self._gathering.fill(slot, offset)
            return
        end = offset + slot.numel()
        targets: list[torch.Tensor] = []
        sources: list[torch.Tensor] = []
        for number in range(max(bisect_right(self._offsets, offset) - 1, 0), len(self._tensors)):
            tensor, starts = self._tensors[number], self._offsets[number]
            if starts >= end:
                break
            first, last = max(offset - starts, 0), min(end - starts, tensor.numel())
            if first < last:
                targets.append(slot[starts + first - offset : starts + last - offset])
                sources.append(tensor[first:last])
        copy_each(targets, sources)

    @cached_property
    def _gathering(self) -> Gathering:
        return Gathering(self._tensors, self._offsets)

    def check(self) -> None:
        self._watched.check()


class ExportedTensors(ScatteredTensors):
    """Scattered tensors of one GPU that other processes can map, so that they are sent from where they lie.

    They may also pass through slots, where a receiver cannot map them.
    """

    kind = MemoryKind.EXPORTED

    def __init__(self, tensors: Sequence[torch.Tensor], offsets: Sequence[int], nbytes: int, watched: Watched) -> None:
        super().__init__(tensors, offsets, nbytes, watched)
        self.device = name_of(tensors[0].device)
        self.runs = tuple(map(MemoryRun, offsets, tensors))
        self.digests: dict[Hashable, bytes] = {}


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


def lent(
    tensors: Sequence[torch.Tensor], offsets: Sequence[int], nbytes: int, watched: Watched
) -> ScatteredTensors | ExportedTensors:
    """The extent of these tensors, which others map if they can."""
    if not any(tensor.is_cuda for tensor in tensors):
        return ScatteredTensors(tensors, offsets, nbytes, watched)
    if reason := why_not_exported(tensors):
        return ScatteredTensors(tensors, offsets, nbytes, watched, reason)
    return ExportedTensors(tensors, offsets, nbytes, watched)


def check_readable(tensors: Mapping[str, torch.Tensor]) -> None:
    """
    Raises:
        CheckpointError: the bytes of a tensor do not lie in its memory as they are to be sent; names it.
    """
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise CheckpointError(f"tensor '{name}' is not contiguous; lend tensor.contiguous(), or register a copy")
        if tensor.is_conj() or tensor.is_neg():
            raise CheckpointError(
                f"tensor '{name}' is a conjugate or negative view, whose memory holds other values; lend "
                "tensor.resolve_conj().resolve_neg(), or register a copy"
            )
