"""The element types a checkpoint can hold, by the names the safetensors format gives them.

Source: the ``Dtype`` enumeration of the safetensors format (https://github.com/huggingface/safetensors).
Types torch has no name for (``F6_*``) travel as their raw bytes.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence

import torch

from ckpt_transport.errors import CheckpointError

BITS: dict[str, int] = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Bits per element."""

TORCH: dict[str, torch.dtype] = {
    "BOOL": torch.bool, "F4": torch.float4_e2m1fn_x2, "U8": torch.uint8, "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16,
    "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
    "C64": torch.complex64, "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64,
}  # fmt: skip

_BITS_LIMIT = 8 * 2**63
"""Torch counts bytes in signed integers of 64 bits, also those of strides where a size is 0."""

_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in TORCH.items()}


def nbytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of ``dtype`` and ``shape``.

    Raises:
        CheckpointError: the type is unknown, its elements do not fill whole bytes, or sizes other than 0 multiply to
            2^63 bytes or more.
    """
    if dtype not in BITS:
        raise CheckpointError(f"dtype '{dtype}' is unknown; known are {', '.join(sorted(BITS))}")
    bits = math.prod(shape) * BITS[dtype]
    if bits >= _BITS_LIMIT or (not bits and math.prod(filter(None, shape)) * BITS[dtype] >= _BITS_LIMIT):
        raise CheckpointError(f"a {dtype} tensor of shape {reprlib.repr(list(shape))} is larger than can be counted")
    if bits % 8:
        raise CheckpointError(f"a {dtype} tensor of shape {list(shape)} does not fill whole bytes")
    return bits // 8


def alignment(dtype: str) -> int:
    """The alignment in bytes that reading ``dtype`` in place needs."""
    return max(1, BITS[dtype] // 8)


def name_of(dtype: torch.dtype) -> str:
    """The safetensors name of a torch dtype.

    Raises:
        CheckpointError: safetensors cannot hold that dtype.
    """
    if dtype not in _NAMES:
        raise CheckpointError(f"safetensors has no name for {dtype}; convert the tensor first")
    return _NAMES[dtype]


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape in elements as a safetensors header states it (packed F4 counts two per byte)."""
    shape = tuple(tensor.shape)
    if tensor.dtype == torch.float4_e2m1fn_x2 and shape:
        return (*shape[:-1], shape[-1] * 2)
    return shape


def as_tensor(raw: torch.Tensor, dtype: str, shape: Sequence[int]) -> torch.Tensor:
    """View ``raw`` (uint8, one-dimensional) as a tensor of ``dtype`` and ``shape``, without a copy.

    ``raw`` must start at an address aligned for ``dtype``. What torch has no name for comes back as uint8, flat: the F6
    types, and F4 whose rows do not fill whole bytes.
    """
    torch_shape = tuple(shape)
    if dtype not in TORCH or (dtype == "F4" and torch_shape and torch_shape[-1] % 2):
        return raw
    if dtype == "F4" and torch_shape:
        torch_shape = (*torch_shape[:-1], torch_shape[-1] // 2)
    if raw.numel() == 0:
        return torch.empty(torch_shape, dtype=TORCH[dtype], device=raw.device)
    return raw.view(TORCH[dtype]).view(torch_shape)
