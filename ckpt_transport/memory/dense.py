"""A tensor is dense when its memory holds its elements and nothing else, in whatever order of its dimensions.

A contiguous tensor is, and so is its transpose, or a convolution's weight in ``channels_last``.
"""

from __future__ import annotations

import torch


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether the memory of a tensor holds each of its elements once, and nothing between them."""
    return tensor.is_contiguous() or _largest_strides_first(tensor).is_contiguous()


def in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of a dense tensor in the order in which its memory has them: one dimension, without a copy."""
    return (tensor if tensor.is_contiguous() else _largest_strides_first(tensor)).view(-1)


def _largest_strides_first(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
