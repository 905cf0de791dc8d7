"""A shadow is a copy of a served module that is loaded and processed while the module itself serves.

Like ``layerwise.py`` this uses what is no public interface of vLLM.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from ckpt_transport_vllm import attributes


class ShadowModule:
    """A shadow of one module that vLLM's processing does something to, and that has no modules of its own.

    Args:
        served: the module.
        tensors: memory for what its kernels read, by name within it; what is not there is shared.

    Attributes:
        module: the shadow. Nobody runs it.
    """

    def __init__(self, served: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        self._served = served
        self.module = shadow = copy.copy(served)
        own: Any = shadow
        own._parameters = {name: beside(tensor, tensors.get(name)) for name, tensor in served._parameters.items()}
        own._buffers = {name: beside(tensor, tensors.get(name)) for name, tensor in served._buffers.items()}
        own._non_persistent_buffers_set = set(served._non_persistent_buffers_set)
        if getattr(served, "quant_method", None) is not None:
            own.quant_method = copy.copy(own.quant_method)
        remember_form(served, shadow)

    def exchange(self) -> None:
        """Exchange what both keep beside their tensors, as the functions that call kernels of CPUs."""
        attributes.exchange(self._served, self.module)


def beside(tensor: torch.Tensor | None, memory: torch.Tensor | None) -> torch.Tensor | None:
    """A tensor of the same class and attributes in other memory."""
    if tensor is None or memory is None:
        return tensor
    beside: Any = memory.detach()
    beside.__class__ = tensor.__class__
    beside.__dict__.update(tensor.__dict__)
    return torch.Tensor.requires_grad_(beside, False)


def remember_form(served: torch.nn.Module, shadow: torch.nn.Module) -> None:
    """Have vLLM know of the shadow what it knows of the module: the form that its loader knows."""
    from vllm.model_executor.model_loader.reload import layerwise

    info: Any = copy.copy(layerwise.get_layerwise_info(served))
    info.restore_metadata = tuple(
        {name: _of_shadow(tensor, served) for name, tensor in tensors.items()} for tensors in info.restore_metadata
    )
    info.reset()
    layerwise.LAYERWISE_INFO[shadow] = info


def _of_shadow(meta: torch.Tensor, served: torch.nn.Module) -> torch.Tensor:
    """Of a tensor without memory, a copy that belongs to no module: vLLM gives its methods the one that it is put into.

    What vLLM remembers of a module must not refer to it, or that would never go.
    """
    from vllm.model_executor.model_loader.reload.sanitize import sanitize_layer_refs

    found: Any = meta.detach()
    found.__class__ = meta.__class__
    found.__dict__.update(meta.__dict__)
    return torch.Tensor.requires_grad_(sanitize_layer_refs(found, served), False)
