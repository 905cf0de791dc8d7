"""Copies what is computed, or lies elsewhere, into a pool, so that the next version of its kind is compared with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ckpt_transport.memory import Backing, Buffer
from ckpt_transport.planning.values.alignment import ALIGNMENT
from ckpt_transport.planning.values.manifest import PlacedTensor

CHUNK_BYTES = 64 << 20
"""So many are computed at a time, by all cores or on a GPU. Elements begin and end where chunks do."""


def copy_computed(
    backing: Backing, placed: Sequence[PlacedTensor], pool: Buffer, report: Callable[[int], None]
) -> None:
    """Compute all of an extent.

    Args:
        backing: behind the extent.
        placed: its tensors, at multiples of 256 bytes.
        pool: as large; between tensors it is 0 afterwards.
        report: told of the bytes of each chunk.

    Raises:
        CheckpointError: somebody was seen to change what the bytes are made of.
    """
    backing.check()
    for start in range(0, pool.nbytes, CHUNK_BYTES):
        slot = pool.tensor[start : start + CHUNK_BYTES]
        backing.fill(slot, start)
        report(slot.numel())
    if pool.tensor.is_cuda:
        torch.cuda.current_stream(pool.tensor.device).synchronize()
    backing.check()
    for end in (tensor.offset + tensor.nbytes for tensor in placed):
        if end % ALIGNMENT:
            pool.tensor[end : end + -end % ALIGNMENT] = 0
