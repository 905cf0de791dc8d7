"""Computes the scales of FP8 weights from largest magnitudes, all of it in IEEE single precision.

* Per block: ``per_block_cast_to_fp8`` of vLLM (``vllm/utils/deep_gemm.py``), which is DeepGEMM's: ``scale =
  max(|x|, 1e-4) / 448``, elements ``x * (1 / scale)``; with ``ue8m0`` the scale is rounded up to a power of two.
* Per channel and per tensor: ``QuantFP8`` of vLLM (``input_quant_fp8.py``): ``scale = max(max|x| / 448, 1 / (448 *
  512))``, elements ``x * (1 / scale)``.

Where a checkpoint stores scales in a narrower type, as compressed-tensors does, the scale is rounded to that type
first, so that elements are made for the scale they will be multiplied by. Elements are rounded to the nearest, ties to
even. Maxima are exact, and what follows is written so that IEEE leaves no device a choice: every device gives the same
bits. (In vLLM's own functions a division by a number may be a multiplication on a GPU, and the last bit of a scale
another.)
"""

from __future__ import annotations

import torch

from ckpt_transport_fp8.scheme import Granularity, Scheme

LARGEST = 448.0
"""The largest e4m3 number."""
SMALLEST_BLOCK = 1e-4
"""What the largest element of a block counts as, at least."""
SMALLEST_SCALE = 1.0 / (LARGEST * 512.0)
"""Of a channel or a tensor."""

MANTISSA = (1 << 23) - 1
"""The bits of a float32 that are 0 in a power of two."""


def scales_for(largest: torch.Tensor, scheme: Scheme, dtype: torch.dtype) -> torch.Tensor:
    """Return the scales as a checkpoint stores them.

    Args:
        largest: of each group the largest magnitude, float32, finite.
        scheme: how the weight is quantized.
        dtype: float32, bfloat16 or float16.
    """
    divisor = largest.new_full((), LARGEST)  # a number would become a multiplication by its inverse on a GPU
    if scheme.granularity is Granularity.BLOCK:
        scales = largest.clamp(min=SMALLEST_BLOCK) / divisor
    else:
        scales = (largest / divisor).clamp(min=SMALLEST_SCALE)
    if scheme.powers_of_two:
        scales = _power_above(scales)
    return scales.to(dtype)


def factors_for(scales: torch.Tensor) -> torch.Tensor:
    """Return what elements are multiplied by, float32."""
    return scales.to(torch.float32).reciprocal()


def _power_above(values: torch.Tensor) -> torch.Tensor:
    """Return the smallest powers of two that are not less than ``values``, which are normal numbers above 0."""
    return ((values.view(torch.int32) + MANTISSA) & ~MANTISSA).view(torch.float32)
