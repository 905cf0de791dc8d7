"""A likeness of a model that serves: its modules over again, in the form that loaders know, without memory.

The loader of a model can be recorded on it while forward passes go through the model itself. It uses what is no public
interface of vLLM, as ``load_format.py`` does: what vLLM remembers of each module is given to the module's likeness.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from ckpt_transport import RecordingError
from ckpt_transport_vllm.load_format import everything_on_meta
from ckpt_transport_vllm.updated_model import UpdatedModel


@contextmanager
def likeness_on_meta(target: UpdatedModel) -> Iterator[UpdatedModel]:
    """A likeness of ``target``, in the form that its loaders know, for as long as the context lasts.

    Raises:
        RecordingError: the model has a loader of its own, which would load into the model.
    """
    if "load_weights" in target.model.__dict__:
        raise RecordingError("its load_weights was replaced by another")
    alike = replace(target, model=_like(target.model, {}))
    with everything_on_meta(alike):
        yield alike


def _like(module: torch.nn.Module, known: dict[torch.nn.Module, torch.nn.Module]) -> torch.nn.Module:
    """The likeness of a module and its children; what else they refer to is the same."""
    if module in known:
        return known[module]
    alike = known[module] = object.__new__(type(module))
    own: dict[str, Any] = dict(module.__dict__)
    own["_parameters"] = {name: _same_memory(each) for name, each in module._parameters.items()}
    own["_buffers"] = {name: _same_memory(each) for name, each in module._buffers.items()}
    own["_non_persistent_buffers_set"] = set(module._non_persistent_buffers_set)
    own["_modules"] = {name: None if child is None else _like(child, known) for name, child in module._modules.items()}
    alike.__dict__.update(own)
    _remember(module, alike)
    return alike


def _same_memory(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Another tensor with this one's memory, class and attributes."""
    if tensor is None:
        return None
    alike = tensor.data
    alike.__class__ = tensor.__class__
    alike.__dict__.update(tensor.__dict__)
    return alike


def _remember(module: torch.nn.Module, alike: torch.nn.Module) -> None:
    """What vLLM remembers of how a module was before its weights were processed counts for its likeness."""
    from vllm.model_executor.model_loader.reload import layerwise, meta

    def again(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: meta.to_meta_tensor(tensor) for name, tensor in tensors.items()}

    known, own = layerwise.get_layerwise_info(module), layerwise.get_layerwise_info(alike)
    parameters, buffers = known.restore_metadata
    own.restore_metadata, own.restore_device = (again(parameters), again(buffers)), known.restore_device
