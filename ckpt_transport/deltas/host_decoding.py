"""On the host NumPy finds the places of encoded elements; masks are read by all cores."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.deltas.all_cores import by_all_cores
from ckpt_transport.deltas.lies import wrong_counts, wrong_mask, wrong_places
from ckpt_transport.deltas.sections import BLOCK_UNITS

CHUNK_BYTES = 64 << 10
"""Of a mask; its bits, a byte each, stay in the cache."""


def listed(counts: torch.Tensor, places: torch.Tensor, units: int) -> torch.Tensor:
    """As :func:`ckpt_transport.deltas.torch_decoding.listed`."""
    each, within = counts.numpy().view(np.uint32).astype(np.int64), places.numpy().view(np.uint16)
    ends = each.cumsum()
    if each.max() > BLOCK_UNITS or ends[-1] != within.size:
        raise wrong_counts(within.size)
    ascend = within[1:] > within[:-1]
    ascend[ends[(ends > 0) & (ends < within.size)] - 1] = True
    found = np.repeat(np.arange(each.size) * BLOCK_UNITS, each)
    found += within
    if not ascend.all() or found[-1] >= units:
        raise wrong_places(units)
    return torch.from_numpy(found)


def masked(mask: torch.Tensor, units: int, count: int) -> torch.Tensor:
    """As :func:`ckpt_transport.deltas.torch_decoding.masked`."""
    raw = mask.numpy()
    starts = range(0, raw.size, CHUNK_BYTES)

    def bits(start: int) -> npt.NDArray[np.bool_]:
        return np.unpackbits(raw[start : start + CHUNK_BYTES], bitorder="little").view(np.bool_)

    outside = int(raw[-1]) >> (units - 1) % 8 >> 1
    counts = by_all_cores(lambda start: int(np.count_nonzero(bits(start))), starts)
    if outside or sum(counts) != count:
        raise wrong_mask(units, count)
    found = np.empty(count, np.int64)

    def write(start: int, end: int, number: int) -> None:
        np.add(np.flatnonzero(bits(start)), 8 * start, out=found[end - number : end])

    by_all_cores(lambda part: write(*part), list(zip(starts, accumulate(counts), counts, strict=True)))
    return torch.from_numpy(found)
