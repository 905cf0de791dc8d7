"""Tells torch of writes that it has not seen."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.autograd.graph import increment_version


def written_past_torch(tensors: Iterable[torch.Tensor]) -> None:
    """Tensors have got other values, by copies of bytes that torch does not see.

    So a gradient of a pass before that is refused instead of being computed with the new values, and autocast casts
    anew what it has cast before.
    """
    count_writes(tensors)
    torch.clear_autocast_cache()


def count_writes(tensors: Iterable[torch.Tensor]) -> None:
    """Count one more write to each, for gradients."""
    increment_version(tensors)
