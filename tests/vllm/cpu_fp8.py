"""FP8 on any CPU, for tests: arithmetic for vLLM's FP8 layers where it has some only for AMX.

How weights are loaded, quantized and reloaded is not touched: :func:`register` adds kernels that multiply, and the
one operation that rounds to FP8. It is a plugin as vLLM finds them by entry point (``vllm.general_plugins``).
"""

from __future__ import annotations

from typing import Any

import torch

BLOCK = 128
E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
TINY = 1 / (LARGEST * 512)


def register() -> None:
    """Without effect on other platforms than CPUs."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    import vllm._custom_ops as operations

    operations.scaled_fp8_quant = _scaled_fp8_quant
    _add_blocks()
    _add_experts()


def _scaled_fp8_quant(
    input: torch.Tensor,
    scale: torch.Tensor | None = None,
    num_token_padding: int | None = None,
    scale_ub: torch.Tensor | None = None,
    use_per_token_if_dynamic: bool = False,
    output: torch.Tensor | None = None,
    group_shape: tuple[int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    assert num_token_padding is None
    assert scale_ub is None
    values = input.float()
    if scale is None:
        per_token = use_per_token_if_dynamic
        most = values.abs().amax(-1, keepdim=True) if per_token else values.abs().amax().view(1)
        scale = (most / LARGEST).clamp(min=TINY)
    rounded = (values * scale.float().reciprocal()).clamp(-LARGEST, LARGEST).to(E4M3)
    if output is not None:
        rounded = output.copy_(rounded)
    return rounded, scale


def _spread(scales: torch.Tensor, block: tuple[int, int], shape: torch.Size) -> torch.Tensor:
    """Scales of blocks, one for each element."""
    rows, columns = shape
    return scales.float().repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]


def _add_blocks() -> None:
    from vllm.model_executor.kernels import linear
    from vllm.model_executor.kernels.linear.scaled_mm.BlockScaledMMLinearKernel import Fp8BlockScaledMMLinearKernel
    from vllm.platforms.interface import PlatformEnum

    class Blocks(Fp8BlockScaledMMLinearKernel):  # type: ignore[misc]
        """Weights back to BF16, block by block, and then an ordinary product."""

        apply_input_quant = False

        @classmethod
        def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
            return True, None

        def apply_block_scaled_mm(
            self, A: torch.Tensor, B: torch.Tensor, As: torch.Tensor, Bs: torch.Tensor
        ) -> torch.Tensor:
            weight = B.float() * _spread(Bs, tuple(self.weight_group_shape), B.shape)
            return torch.nn.functional.linear(A, weight.to(A.dtype))

    kernels: list[Any] = linear._POSSIBLE_FP8_BLOCK_KERNELS[PlatformEnum.CPU]
    if not any(kernel.__name__ == Blocks.__name__ for kernel in kernels):
        kernels.append(Blocks)


def _add_experts() -> None:
    """vLLM's experts of 8 bits for CPUs, without the packing for AMX."""
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe

    experts: Any = cpu_moe.CPUExpertsFp8
    experts._supports_current_device = staticmethod(lambda: True)
    experts._supports_quant_scheme = staticmethod(lambda weight, activation: True)
    experts.apply = _apply_experts
    cpu_moe.prepare_fp8_moe_layer_for_cpu = lambda w13, w2: (w13, w2)


def _apply_experts(
    self: Any,
    output: torch.Tensor,
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *_: Any,
    **__: Any,
) -> None:
    result = torch.zeros_like(output, dtype=torch.float32)
    for token in range(len(hidden_states)):
        for weight, expert in zip(topk_weights[token].tolist(), topk_ids[token].tolist(), strict=True):
            gate_up = hidden_states[token].float() @ _back(w1[expert], self.w1_scale[expert]).t()
            gate, up = gate_up.chunk(2)
            inner = torch.nn.functional.silu(gate) * up
            result[token] += weight * (inner @ _back(w2[expert], self.w2_scale[expert]).t())
    output.copy_(result)


def _back(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """One expert's weight, with a scale for all of it, for each row, or for each block."""
    if scales.dim() == 2 and scales.shape[0] != weight.shape[0]:
        return weight.float() * _spread(scales, (BLOCK, BLOCK), weight.shape)
    return weight.float() * scales.float().reshape(-1, 1)
