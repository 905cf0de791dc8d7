"""A version is borrowed: its tensors stay where they are, and are cast on their way where they are to be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ckpt_transport import dtypes
from ckpt_transport.checkpoint.computed import CastTensors, ComputedExtent
from ckpt_transport.checkpoint.lent_memory import LentMemory
from ckpt_transport.checkpoint.scattered import Loan, ScatteredTensors, check_each_readable, lent
from ckpt_transport.checkpoint.shards import (
    GivenTensor,
    labels_of,
    lay_out_parts,
    place,
    replicated_names,
    same_names,
)
from ckpt_transport.checkpoint.watched import Watched, Watching
from ckpt_transport.memory import CPU, Backing
from ckpt_transport.planning.values.manifest import Conversion


def borrow(parts: Sequence[GivenTensor], conversions: Sequence[Conversion] = ()) -> Loan:
    """Make an extent over what a source gives.

    What was enqueued on the current stream of their devices has ended when this returns.

    Raises:
        CheckpointError: the bytes of a tensor do not lie as they are sent; names it.
    """
    if not parts:
        return Loan(None, ())
    labels = labels_of(parts)
    tensors = [part.tensor.detach() for part in parts]
    check_each_readable(labels, tensors)
    wait_for_writers({tensor.device for tensor in tensors})
    offsets, nbytes = lay_out_parts(parts)
    watched = Watched.so(Watching.of(labels, tensors), tensors)
    kept = [number for number, part in enumerate(parts) if not part.cast]
    backing: Backing
    if len(kept) < len(parts):
        cast = [(part, offset) for part, offset in zip(parts, offsets, strict=True) if part.cast]
        places = [offsets[number] for number in kept]
        backing = _cast(cast, ScatteredTensors.of([tensors[number] for number in kept], places, nbytes, watched))
    else:
        backing = lent(tensors, LentMemory.of(tensors, offsets, nbytes), watched)
    return Loan(backing, tuple(place(parts, offsets)), conversions, same_names(parts), replicated_names(parts))


def wait_for_writers(devices: Iterable[torch.device]) -> None:
    """Wait for what is enqueued on the current streams of these devices."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()


def _cast(parts: Sequence[tuple[GivenTensor, int]], kept: ScatteredTensors) -> ComputedExtent:
    """Cast where the tensors lie."""
    tensors = [part.tensor for part, _ in parts]
    device = next((tensor.device for tensor in tensors if tensor.is_cuda), CPU)
    to = [dtypes.TORCH[part.spec.dtype] for part, _ in parts]
    return ComputedExtent(device, kept, [CastTensors(tensors, to, [offset for _, offset in parts])])
