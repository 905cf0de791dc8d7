"""Tells tensors apart without a copy of them, where they lie."""

from __future__ import annotations

from collections.abc import Iterator

import torch

WORD = 8
CHUNK_WORDS = 1 << 25
"""Words that are summed at a time: 256 MiB, and as much again for their weights."""


def weighted_sum(tensor: torch.Tensor) -> int:
    """The sum of a tensor's 64-bit words, each times its odd place, modulo 2 to the 64th; its last bytes as they are.

    A word that differs changes it, and so does one that is elsewhere. It is not made to withstand intent.

    Args:
        tensor: contiguous, of any type, on any device.
    """
    raw = tensor.detach().reshape(-1).view(torch.uint8)
    whole = raw.numel() // WORD * WORD
    words = raw[:whole].clone() if raw.data_ptr() % WORD else raw[:whole]
    found = sum(_sums(words.view(torch.int64)))
    return (found + int.from_bytes(bytes(raw[whole:].tolist()), "little")) % (1 << 64)


def _sums(words: torch.Tensor) -> Iterator[int]:
    for start in range(0, words.numel(), CHUNK_WORDS):
        chunk = words[start : start + CHUNK_WORDS]
        weights = torch.arange(start, start + chunk.numel(), device=words.device).mul_(2).add_(1)
        yield int(weights.mul_(chunk).sum())
