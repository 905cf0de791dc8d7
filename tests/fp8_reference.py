"""FP8 quantization written out in double precision, one element at a time as it were: what the fast ways must equal.

A product of two single precision numbers is exact in double precision, so rounding it once gives IEEE's single
precision product; a quotient is right too, since 53 bits are more than twice 24 and two (Figueroa 1995).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ckpt_transport_fp8.scheme import Granularity, Scheme

Array = np.ndarray[Any, Any]

CODES = np.arange(127, dtype=np.uint8)
"""The finite e4m3 numbers that are not negative, ascending."""
VALUES = np.where(CODES < 8, CODES * 2.0**-9, (1 + CODES % 8 / 8.0) * 2.0 ** (CODES // 8 - 7.0))
MIDDLES = (VALUES[1:] + VALUES[:-1]) / 2


def single(values: Any) -> Any:
    """Rounded to single precision."""
    return np.float64(np.float32(values))


def nearest(values: Array) -> Array:
    """The e4m3 codes nearest to ``values``, ties to even; beyond the largest, the largest."""
    magnitudes = np.abs(values)
    down, up = np.searchsorted(MIDDLES, magnitudes, "left"), np.searchsorted(MIDDLES, magnitudes, "right")
    codes = np.where(down % 2 == 0, down, up).astype(np.uint8)
    return np.where(np.signbit(values), codes | 0x80, codes)


def quantize(weight: torch.Tensor, scheme: Scheme, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Returns: codes, uint8 of the weight's shape; scales of ``dtype``, one for each group.
    """
    values: Array = weight.to(torch.float64).numpy()
    (rows, columns), (high, wide) = values.shape, scheme.group(tuple(weight.shape))
    grid = scheme.grid((rows, columns))
    scales = torch.empty(grid, dtype=dtype)
    codes = np.empty((rows, columns), dtype=np.uint8)
    for down in range(grid[0]):
        for across in range(grid[1]):
            place = (slice(down * high, (down + 1) * high), slice(across * wide, (across + 1) * wide))
            group = values[place]
            most = np.abs(group).max()
            if scheme.granularity is Granularity.BLOCK:
                scale = single(np.maximum(most, single(1e-4)) / 448)
            else:
                scale = np.maximum(single(most / 448), single(1 / (448 * 512)))
            if scheme.powers_of_two:
                scale = 2.0 ** np.ceil(np.log2(scale))
            scales[down, across] = torch.tensor(float(scale), dtype=torch.float32).to(dtype)
            factor = single(1 / scales[down, across].item())
            codes[place] = nearest(single(group * factor))
    return torch.from_numpy(codes), scales


def error(weight: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, scheme: Scheme) -> float:
    """The norm of what was lost, over that of the weight, in double precision."""
    high, wide = scheme.group(tuple(weight.shape))
    spread = scales.double().repeat_interleave(high, 0).repeat_interleave(wide, 1)[: weight.shape[0], : weight.shape[1]]
    back = codes.view(torch.float8_e4m3fn).double() * spread
    return float((back - weight.double()).norm() / weight.double().norm())
