"""What vLLM packs for a CPU, so that no parameter has it: which modules do, and what they compute with it."""

from __future__ import annotations

from typing import Any

import torch

Products = dict[str, torch.Tensor]
NOTHING = "/"
"""No name ends so."""


def pack_only(ending: str) -> None:
    """Have vLLM pack the weights of linear layers whose names end so, and of no others; before it makes the model.

    Args:
        ending: of names; all end with nothing, and none with :data:`NOTHING`.
    """
    from vllm import _custom_ops
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    process: Any = UnquantizedLinearMethod.process_weights_after_loading
    packs = _custom_ops._supports_onednn

    def process_some(self: Any, layer: Any) -> None:
        _custom_ops._supports_onednn = packs and layer.prefix.endswith(ending)
        try:
            process(self, layer)
        finally:
            _custom_ops._supports_onednn = False

    UnquantizedLinearMethod.process_weights_after_loading = process_some
    _custom_ops._supports_onednn = False


def products_of(model: torch.nn.Module) -> Products:
    """What each layer with a packed weight makes of one input, by its name."""
    found: Products = {}
    for name, module in model.named_modules():
        layer: Any = module
        if hasattr(layer, "cpu_linear") and not layer.weight.numel():
            size = getattr(layer, "input_size_per_partition", None) or layer.embedding_dim
            ones = torch.eye(size, dtype=layer.weight.dtype)
            found[name] = layer.cpu_linear(ones, layer.weight, None)
    return found
