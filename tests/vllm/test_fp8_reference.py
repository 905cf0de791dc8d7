"""Given weights, when they are quantized on the way, then the bits are those of vLLM's own functions, on this CPU."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport_fp8 import quantized
from ckpt_transport_fp8.scheme import Scheme
from tests.unit.adapters.test_fp8_quantized import CPU, NAME, SCHEMES, bytes_of, target, weight

pytestmark = pytest.mark.filterwarnings("ignore")
"""Importing vLLM warns of what it does itself."""
SHAPES = [(128, 256), (300, 200), (7, 1000), (1, 1)]
DTYPES = [torch.bfloat16, torch.float32]


def ours(source: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    found = bytes_of(quantized({NAME: source}, target(scheme), CPU))
    return found[NAME].view(source.shape), found[scheme.scale_name(NAME)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", ["block", "ue8m0"])
def test_given_blocks_then_they_are_those_of_per_block_cast_to_fp8(
    scheme: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    from vllm.utils.deep_gemm import per_block_cast_to_fp8

    source = weight(*shape, dtype, 0)
    with torch.compiler.set_stance("force_eager"):
        codes, scales = per_block_cast_to_fp8(source, [128, 128], use_ue8m0=scheme == "ue8m0")
    found, found_scales = ours(source, SCHEMES[scheme])
    assert torch.equal(found, codes.view(torch.uint8))
    assert torch.equal(found_scales, scales.contiguous().view(-1).view(torch.uint8))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", ["channel", "tensor"])
def test_given_channels_and_tensors_then_they_are_those_of_quant_fp8(scheme: str, shape: tuple[int, int]) -> None:
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.quantization.input_quant_fp8 import QuantFP8
    from vllm.model_executor.layers.quantization.utils.quant_utils import GroupShape

    source = weight(*shape, torch.float32, 0)
    with set_current_vllm_config(VllmConfig()):
        group = GroupShape.PER_TOKEN if scheme == "channel" else GroupShape.PER_TENSOR
        codes, scales = QuantFP8(static=False, group_shape=group).forward_native(source)
    found, found_scales = ours(source, SCHEMES[scheme])
    assert torch.equal(found, codes.view(torch.uint8))
    assert torch.equal(found_scales, scales.contiguous().view(-1).view(torch.uint8))
