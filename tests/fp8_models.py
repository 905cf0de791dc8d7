"""A plain PyTorch model with FP8 weights, and the BF16 weights that it is updated from."""

from __future__ import annotations

from typing import Any

import torch

from ckpt_transport_fp8 import Target
from ckpt_transport_fp8.config import parse
from ckpt_transport_fp8.scheme import Granularity, Scheme
from tests.fp8_reference import quantize

ROWS, COLUMNS = 300, 200
"""No multiples of a block's size, so that blocks at the edges are smaller."""
SCHEME = Scheme(Granularity.BLOCK, "weight_scale_inv")
CONFIG: dict[str, Any] = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}


class Fp8Linear(torch.nn.Module):
    """Dequantizes its weight in every forward pass."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        weight = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn)
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.weight_scale_inv = torch.nn.Parameter(torch.zeros(SCHEME.grid((rows, columns))), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows, columns = self.weight.shape
        scales = self.weight_scale_inv.repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :columns]
        return torch.nn.functional.linear(inputs.float(), self.weight.float() * scales)


def fp8_model(seed: int, layers: int = 4, device: str = "cpu") -> torch.nn.Module:
    """Layers there and back between two widths, with a norm at the end that stays BF16."""
    sizes = [(ROWS, COLUMNS), (COLUMNS, ROWS)] * (layers // 2)
    norm = torch.nn.LayerNorm(COLUMNS, dtype=torch.bfloat16)
    module = torch.nn.Sequential(*[Fp8Linear(*size) for size in sizes])
    module.add_module("norm", _Rounding(norm))
    expected = fp8_weights(seed, layers)
    module.load_state_dict(expected)
    return module.to(device)


class _Rounding(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.inner(inputs.bfloat16())  # type: ignore[no-any-return]


def source_weights(seed: int, layers: int = 4, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """What a trainer has."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(ROWS, COLUMNS), (COLUMNS, ROWS)] * (layers // 2)
    weights = {f"{n}.weight": torch.randn(*size, generator=generator).to(dtype) for n, size in enumerate(sizes)}
    for name in ("weight", "bias"):
        weights[f"norm.inner.{name}"] = torch.randn(COLUMNS, generator=generator).to(dtype)
    return weights


def fp8_weights(seed: int, layers: int = 4, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """What the model holds then."""
    return by_reference(source_weights(seed, layers, dtype))


def by_reference(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the reference makes of these weights."""
    made: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        if tensor.dim() == 2:
            codes, scales = quantize(tensor, SCHEME, torch.float32)
            made |= {name: codes.view(torch.float8_e4m3fn), f"{name}_scale_inv": scales}
        else:
            made[name] = tensor.bfloat16()
    return made


def target() -> Target:
    return Target("the model", parse(CONFIG, "its configuration"))
