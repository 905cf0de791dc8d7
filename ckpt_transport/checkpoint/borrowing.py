"""A version is borrowed: its tensors stay where they are, and are cast on their way where they are to be."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ckpt_transport import dtypes
from ckpt_transport.checkpoint.computed import CastTensors, ComputedExtent
from ckpt_transport.checkpoint.scattered import Loan, ScatteredTensors, check_readable, lent
from ckpt_transport.checkpoint.shards import (
    GivenTensor,
    by_label,
    lay_out_parts,
    place,
    replicated_names,
    same_names,
)
from ckpt_transport.checkpoint.watched import Watched
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
    check_readable(by_label(parts))
    for device in {part.tensor.device for part in parts if part.tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    offsets, nbytes = lay_out_parts(parts)
    flat = [part.tensor.detach().reshape(-1).view(torch.uint8) for part in parts]
    watched = Watched(by_label([part._replace(tensor=raw) for part, raw in zip(parts, flat, strict=True)]))
    kept = [number for number, part in enumerate(parts) if not part.cast]
    cast = [(part, offset) for part, offset in zip(parts, offsets, strict=True) if part.cast]
    backing: Backing
    if cast:
        places = [offsets[number] for number in kept]
        backing = _cast(cast, ScatteredTensors([flat[number] for number in kept], places, nbytes, watched))
    else:
        backing = lent(flat, offsets, nbytes, watched)
    return Loan(backing, place(parts, offsets), conversions, same_names(parts), replicated_names(parts))


def _cast(parts: Sequence[tuple[GivenTensor, int]], kept: ScatteredTensors) -> ComputedExtent:
    """Cast where the tensors lie."""
    tensors = [part.tensor for part, _ in parts]
    device = next((tensor.device for tensor in tensors if tensor.is_cuda), CPU)
    to = [dtypes.TORCH[part.spec.dtype] for part, _ in parts]
    return ComputedExtent(device, kept, [CastTensors(tensors, to, [offset for _, offset in parts])])
