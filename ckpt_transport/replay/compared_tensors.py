"""Compares what a replay has left with what the loader has left, so that what neither wrote does not look right."""

from __future__ import annotations

import torch

PIECE_BYTES = 64 << 20
"""Are compared at once, as that takes twice as much memory beside them."""


def inverted_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Memory of its own for the replay of a loader that loads ``tensor``; it begins with each bit inverted."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    copy.copy_(tensor)
    _raw(copy).bitwise_not_()
    return copy


def is_replayed_as_loaded(loaded: torch.Tensor, replayed: torch.Tensor, gap_nbytes: int) -> bool:
    """Whether a replay has left in an inverted copy what the loader has left in the tensor.

    Args:
        loaded: the tensor.
        replayed: what :func:`inverted_copy` has made of it before.
        gap_nbytes: how many bytes neither of both is to write.
    """
    wrong = untouched = 0
    one, other = _raw(loaded), _raw(replayed)
    for start in range(0, one.numel(), PIECE_BYTES):
        differing = one[start : start + PIECE_BYTES] ^ other[start : start + PIECE_BYTES]
        wrong += int(differing.count_nonzero())
        untouched += int((differing == 0xFF).count_nonzero())
    return wrong == gap_nbytes and untouched == wrong


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a tensor as bytes, in a view."""
    return torch.as_strided(tensor, (tensor.numel(),), (1,)).view(torch.uint8)
