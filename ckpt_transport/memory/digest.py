"""The digest of bytes, wherever they are; :mod:`ckpt_transport.memory.digest_pages` says what it is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch

from ckpt_transport.memory.device_digest import digest_on_device
from ckpt_transport.memory.digest_pages import Digest
from ckpt_transport.memory.host_digest import SHORT_BYTES, add, add_short


def digest(runs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Compute the digest of bytes in several tensors, one behind the other; each begins a page of its own.

    Args:
        runs: uint8, one-dimensional, contiguous, all on one device.

    Returns: the two sums: shape ``(2,)``, dtype int64, on that device; on a GPU in the order of its current stream.
    """
    if runs[0].is_cuda:
        return digest_on_device(runs)
    sums = np.zeros(2, np.uint64)
    first = 0
    with np.errstate(over="ignore"):
        for short, some in groupby(runs, lambda run: 0 < run.numel() <= SHORT_BYTES):
            if short:
                few = list(some)
                first = add_short(sums, list(map(torch.Tensor.data_ptr, few)), list(map(len, few)), first)
                continue
            for run in some:
                first = add(sums, run.numpy(), first)
    return torch.from_numpy(sums.view(np.int64))


def as_bytes(sums: torch.Tensor) -> Digest:
    """Bring what :func:`digest` has returned to the host; waits for the device that it is on."""
    return sums.cpu().numpy().tobytes()
