"""On the host NumPy finds the places of encoded elements; masks are read by all cores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.deltas.all_cores import by_all_cores
from ckpt_transport.deltas.lies import wrong_counts, wrong_mask, wrong_places
from ckpt_transport.deltas.sections import BLOCK_UNITS

CHUNK_BYTES = 8 << 10
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

    def places(start: int) -> npt.NDArray[np.int64]:
        return np.flatnonzero(bits(start)) + start * 8

    outside = int(raw[-1]) >> (units - 1) % 8 >> 1
    if outside or sum(by_all_cores(lambda start: int(np.count_nonzero(bits(start))), starts)) != count:
        raise wrong_mask(units, count)
    return torch.from_numpy(np.concatenate(by_all_cores(places, starts)))
