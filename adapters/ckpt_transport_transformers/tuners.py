"""Models that PEFT has wrapped, or put adapters into."""

from __future__ import annotations

from typing import Any

from ckpt_transport import UnwritableError


def model_inside(model: Any) -> Any:
    """The model of transformers whose forward pass computes everything; of a ``PeftModel``, the one that it wraps.

    ``generate`` of a ``PeftModel`` calls that one, and not the wrapper.

    Raises:
        UnwritableError: the wrapper has tensors of its own, which no forward pass of that model reads; names one.
    """
    if not hasattr(model, "get_base_model"):
        return model
    inside = model.get_base_model()
    read = set(map(id, inside.parameters()))
    for name, parameter in model.named_parameters():
        if id(parameter) not in read:
            raise UnwritableError(
                f"{name} cannot be updated: {type(model).__name__} reads it before the forward pass of "
                f"{type(inside).__name__} begins, and only that can be held: attach(model.get_base_model()), whose "
                "other tensors are updated then"
            )
    return inside
