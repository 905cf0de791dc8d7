"""Brings modules of vLLM into the form that their loaders know: not quantized, packed or moved for kernels yet.

vLLM remembers what every module looked like before its weights were processed; see ``layerwise.py``. Here a module is
brought into that form, on the ``meta`` device to look at or with memory to load into, and from there through vLLM's own
processing into the tensors that kernels read. Like ``layerwise.py`` this uses what is no public interface of vLLM.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ckpt_transport.spi import Recording
from ckpt_transport_vllm.layerwise import forget_prepacked_experts, put_back, waits_for_the_end
from ckpt_transport_vllm.updated_model import UpdatedModel

Tensors = Mapping[str, torch.Tensor]
"""By name within a module."""


@contextmanager
def everything_on_meta(target: UpdatedModel) -> Iterator[None]:
    """Have the whole model in the form that its loaders know, without memory, for as long as the context lasts."""
    from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

    try:
        with target.configured():
            initialize_layerwise_reload(target.model)
            for module in target.model.modules():
                _unwrap(module)
        yield
    finally:
        put_back(target.model)


@contextmanager
def with_memory(target: UpdatedModel, module: torch.nn.Module, recording: Recording) -> Iterator[Tensors]:
    """Have one module of a likeness in memory of its own that is not initialised, for as long as the context lasts.

    Args:
        target: the likeness. It is on the ``meta`` device, but for what loaders know as it is served, as maps of
            experts: what they have looked at of that gets the values that they have seen.
        module: of that likeness.
        recording: of the loader.
    """
    from vllm.model_executor.model_loader.reload import layerwise

    tables: list[dict[str, Any]] = [module._parameters, module._buffers]
    before = [dict(table) for table in tables]
    try:
        with target.configured():
            layerwise.materialize_layer(module, layerwise.get_layerwise_info(module))
        for table, shared in zip(tables, before, strict=True):
            kept = {name: each for name, each in shared.items() if each is not None and table[name] is each}
            table.update({name: _apart(each, recording.in_other_memory(each)) for name, each in kept.items()})
        yield tensors_of(module)
    finally:
        for table, shared in zip(tables, before, strict=True):
            table.update(shared)


def _apart(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The other tensor, with this one's class and attributes."""
    other.__class__ = tensor.__class__
    other.__dict__.update(tensor.__dict__)
    return other


def tensors_of(module: torch.nn.Module) -> Tensors:
    """The parameters and buffers of the module itself, without those of its children."""
    own = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def can_be_staged(module: torch.nn.Module, loaded: Collection[str]) -> bool:
    """Whether the module can be processed by itself once it has all of its weights.

    Attention is not: it comes after all others. Nor is a buffer that vLLM copies only if its own loader has loaded it.
    """
    return not waits_for_the_end(module) and not set(loaded) & module._non_persistent_buffers_set


def stage(target: UpdatedModel, module: torch.nn.Module, others: Collection[torch.nn.Module]) -> Tensors:
    """Bring one module into the form that its loader knows, with memory that is not initialised.

    Args:
        target: the model.
        module: of that model.
        others: modules that are, or will be, staged as well; of interest where this one has modules of its own.
    """
    from vllm.model_executor.model_loader.reload import initialize_layerwise_reload, layerwise

    with target.configured():
        initialize_layerwise_reload(module)
        put_back(module, but={module, *others})
        layerwise.materialize_layer(module, layerwise.get_layerwise_info(module))
        _unwrap(module)
    return tensors_of(module)


def process(target: UpdatedModel, module: torch.nn.Module) -> None:
    """Have vLLM process a staged module, and copy the outcome to where kernels read it."""
    from vllm.model_executor.model_loader.reload import layerwise

    with target.configured(), torch.no_grad():
        forget_prepacked_experts(module)
        layerwise._layerwise_process(module, layerwise.get_layerwise_info(module))


def _unwrap(module: torch.nn.Module) -> None:
    """Let parameters have the loaders that they came with, not those which only keep what they are given."""
    from vllm.model_executor.model_loader.reload import layerwise

    for tensor in tensors_of(module).values():
        if hasattr(tensor, "weight_loader"):
            loader: Any = tensor
            loader.weight_loader = layerwise._get_original_loader(tensor)
