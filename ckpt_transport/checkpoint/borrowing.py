"""A version is borrowed: its tensors stay where they are, and are computed on their way where they are to be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ckpt_transport import dtypes
from ckpt_transport.checkpoint.casts import check_cast
from ckpt_transport.checkpoint.computed import CastTensors, ComputedExtent, Computing
from ckpt_transport.checkpoint.given_tensor import GivenTensor, labels_of, replicated_names, same_names
from ckpt_transport.checkpoint.lent_memory import LentMemory
from ckpt_transport.checkpoint.low_rank import Sum, Sums
from ckpt_transport.checkpoint.placing import lay_out_parts, place, why_gathered, why_gathered_on_the_host
from ckpt_transport.checkpoint.scattered import Loan, ScatteredTensors, are_runs_of_bytes, check_each_readable, lent
from ckpt_transport.checkpoint.watched import Watched, Watching
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import CPU, Backing, ByteViews
from ckpt_transport.planning.values.manifest import Conversion


def borrow(parts: Sequence[GivenTensor], conversions: Sequence[Conversion] = ()) -> Loan:
    """Make an extent over what a source gives.

    What was enqueued on the current stream of their devices has ended when this returns.

    Raises:
        CheckpointError: the bytes of a tensor do not lie as they are sent, or an element is too large for the type that
            it is to be cast to; names it.
    """
    if not parts:
        return Loan(None, ())
    labels = labels_of(parts)
    tensors = [part.tensor.detach() for part in parts]
    if not are_runs_of_bytes(tensors):
        _check_made(labels, parts, conversions)
        check_each_readable(labels, tensors)
    for part in parts:
        check_cast(part)
    wait_for_writers({tensor.device for tensor in tensors})
    offsets, nbytes = lay_out_parts(parts)
    placed = place(parts, offsets)
    watching = Watching.of(labels, tensors)
    kept = [number for number, part in enumerate(parts) if not part.computed]
    backing: Backing
    if len(kept) < len(parts):
        computed = [(part, offset) for part, offset in zip(parts, offsets, strict=True) if part.computed]
        places = [offsets[number] for number in kept]
        watched = Watched.so(watching, tensors, ByteViews.of(tensors))
        scattered = ScatteredTensors.of([tensors[number] for number in kept], places, nbytes, watched)
        backing = _computed(computed, scattered)
    else:
        gathered = why_gathered(placed, offsets, [part.nbytes for part in parts])
        if not gathered and not any(tensor.is_cuda for tensor in tensors):
            gathered = why_gathered_on_the_host(placed, len(parts))
        backing = lent(tensors, LentMemory.of(tensors, offsets, nbytes, gathered), watching)
    return Loan(backing, tuple(placed), conversions, same_names(parts), replicated_names(parts))


def _check_made(labels: Sequence[str], parts: Sequence[GivenTensor], conversions: Sequence[Conversion]) -> None:
    """
    Raises:
        CheckpointError: what rules have made of a tensor is no run of memory; names both.
    """
    made = {name: conversion.how for conversion in conversions for name in conversion.tensors}
    for label, part in zip(labels, parts, strict=True):
        if part.spec.name in made and not part.tensor.is_contiguous():
            raise CheckpointError(
                f"tensor '{label}', as rules have made it ({made[part.spec.name]}), is not contiguous and cannot be "
                "lent; register the tensors with this mapping, or publish them, which does"
            )


def wait_for_writers(devices: Iterable[torch.device]) -> None:
    """Wait for what is enqueued on the current streams of these devices."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()


def _computed(parts: Sequence[tuple[GivenTensor, int]], kept: ScatteredTensors) -> ComputedExtent:
    """Compute where the tensors lie."""
    device = next((part.tensor.device for part, _ in parts if part.tensor.is_cuda), CPU)
    computing: list[Computing] = []
    if cast := [(part, offset) for part, offset in parts if not part.added]:
        computing.append(CastTensors([part.tensor for part, _ in cast], *_types_and_offsets(cast)))
    if sums := [(part, offset) for part, offset in parts if part.added]:
        computing.append(Sums([Sum(part.tensor, part.added) for part, _ in sums], *_types_and_offsets(sums)))
    return ComputedExtent(device, kept, computing)


def _types_and_offsets(parts: Sequence[tuple[GivenTensor, int]]) -> tuple[list[torch.dtype], list[int]]:
    return [dtypes.TORCH[part.spec.dtype] for part, _ in parts], [offset for _, offset in parts]
