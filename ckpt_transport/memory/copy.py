"""Copying host memory."""

from __future__ import annotations

import numpy as np
import torch

PARALLEL_BYTES = 1 << 20


def copy_bytes(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy ``source`` over ``target``: uint8, one-dimensional, contiguous, of equal length.

    ``Tensor.copy_`` on the host splits anything above 32 Ki elements over threads, which wait for each other by
    spinning. Where several processes copy at once, a thread that spins keeps away the one it waits for: copies of
    64 KiB were seen to take 16 ms. So what is too small to gain from threads is copied without them.
    """
    if target.is_cpu and source.is_cpu and target.numel() < PARALLEL_BYTES:
        np.copyto(target.numpy(), source.numpy())
    else:
        target.copy_(source)
