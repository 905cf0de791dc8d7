"""Models that cannot be updated as they are are refused by the name of what is in the way."""

from __future__ import annotations

from typing import Any

from ckpt_transport import UnwritableError


def refuse_quantized(model: Any) -> None:
    """
    Raises:
        UnwritableError: the model is quantized; names the method.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        method = getattr(quantizer.quantization_config, "quant_method", type(quantizer).__name__)
        raise UnwritableError(
            f"{type(model).__name__} is quantized ({getattr(method, 'value', method)}), and new weights would have to "
            "be quantized as it was; serve it in the type of the checkpoint, or load the new checkpoint by "
            "from_pretrained"
        )


def refuse_merged(model: Any) -> None:
    """
    Raises:
        UnwritableError: an adapter is merged into weights, which are not those of any version then; names both.
    """
    for name, module in model.named_modules():
        merged = getattr(module, "merged_adapters", None)
        if merged:
            raise UnwritableError(
                f"{name} cannot be updated: the adapter {', '.join(map(repr, merged))} is merged into its weight, and "
                "a version has both apart: unmerge_adapter() before, or serve what merge_and_unload() returns"
            )
