"""Buckets and the tensors of a pool are aligned."""

from __future__ import annotations

ALIGNMENT = 256
"""Buckets start at multiples of this in their extent, so a tensor is as aligned in a slot as in its extent."""


def align_down(offset: int) -> int:
    """The last aligned offset that is not behind ``offset``."""
    return offset - offset % ALIGNMENT


def align_up(offset: int) -> int:
    """The first aligned offset that is not before ``offset``."""
    return -(-offset // ALIGNMENT) * ALIGNMENT
