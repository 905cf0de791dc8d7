"""Probes of host memory: copies of more bytes than caches hold."""

from __future__ import annotations

import numpy as np
import torch

from ckpt_transport.memory import copy_bytes
from ckpt_transport.rates.timing import fastest, seconds

PROBE_BYTES = 64 << 20


def by_all_cores() -> float:
    """Bytes per second of a copy by as many threads as torch may use."""
    source, target = _memory(), _memory()
    return PROBE_BYTES / fastest(lambda: seconds(lambda: copy_bytes(target, source)))


def by_one_core() -> float:
    """Bytes per second of a copy by the calling thread."""
    source, target = _memory().numpy(), _memory().numpy()
    return PROBE_BYTES / fastest(lambda: seconds(lambda: np.copyto(target, source)))


def _memory() -> torch.Tensor:
    """Memory whose pages are there."""
    return torch.ones(PROBE_BYTES, dtype=torch.uint8)
