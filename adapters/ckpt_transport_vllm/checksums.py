"""What a model's weights are, in a form that two engines can compare."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

PROBES = 4


def checksums(model: torch.nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter and persistent buffer, by name.

    On some CPUs vLLM packs a weight for its kernel and keeps an empty tensor. The weight is then known by what it does:
    its checksum is that of the layer's output for ``PROBES`` fixed inputs, the same on engines of one kind.
    """
    found = {name: _digest(tensor) for name, tensor in model.state_dict().items() if tensor.numel()}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and not weight.numel() and hasattr(module, "cpu_linear"):
            found[f"{name}.weight"] = _digest(_probe(module))
    return found


def _probe(module: Any) -> torch.Tensor:
    width = getattr(module, "input_size_per_partition", None) or module.embedding_dim
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(PROBES, width, generator=generator).to(module.weight.dtype)
    with torch.inference_mode():
        output: torch.Tensor = module.cpu_linear(inputs, module.weight, None)
    return output


def _digest(tensor: torch.Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()
