"""Describes the weights of a model in a form that two engines can compare."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

PROBES = 4
"""Rows of the inputs."""


def checksums(model: torch.nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter and persistent buffer, by name, and of what layers compute that CPU kernels serve.

    On CPUs vLLM packs weights for its kernels, and a packed weight cannot be read. Such a layer is known by what it
    does: the checksum of ``NAME()`` is that of its output for fixed inputs, the same on engines of one kind.
    """
    found = {name: _digest(tensor) for name, tensor in model.state_dict().items() if tensor.numel()}
    for name, module in model.named_modules():
        if hasattr(module, "cpu_linear"):
            found[f"{name}()"] = _digest(_probe(module))
    return found


def _probe(module: Any) -> torch.Tensor:
    widths = (getattr(module, name, None) for name in ("input_size_per_partition", "input_size", "embedding_dim"))
    width = next(width for width in widths if width)
    inputs = torch.randn(PROBES, width, generator=torch.Generator().manual_seed(0)).to(module.weight.dtype)
    with torch.inference_mode():
        output: torch.Tensor = module.cpu_linear(inputs, module.weight, None)
    return output


def _digest(tensor: torch.Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()
