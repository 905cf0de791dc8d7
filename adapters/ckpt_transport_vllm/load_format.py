"""Modules of vLLM as their loaders know them: before weights are quantized, packed or moved for kernels.

vLLM remembers what every module looked like before its weights were processed; see ``layerwise.py``. Here a module is
brought into that form, on the ``meta`` device to look at or with memory to load into, and from there through vLLM's own
processing into the tensors that kernels read. Like ``layerwise.py`` this uses what is no public interface of vLLM.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ckpt_transport_vllm.layerwise import forget_prepacked_experts, waits_for_the_end
from ckpt_transport_vllm.target import Target

Tensors = Mapping[str, torch.Tensor]
"""By name within a module."""


@contextmanager
def everything_on_meta(target: Target) -> Iterator[None]:
    """The whole model as its loaders know it, without memory, for as long as the context lasts."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

    with set_current_vllm_config(target.vllm_config):
        initialize_layerwise_reload(target.model)
        try:
            for module in target.model.modules():
                _unwrap(module)
            yield
        finally:
            put_back(target.model)


def put_back(model: torch.nn.Module, but: Collection[torch.nn.Module] = ()) -> None:
    """Give modules the tensors that kernels read, whatever is in them; all but some."""
    from vllm.model_executor.model_loader.reload import layerwise

    kept = set(but)
    for module in model.modules():
        info = layerwise.get_layerwise_info(module)
        if info.can_load() and module not in kept:
            if info.kernel_tensors is not None:
                layerwise._place_kernel_tensors(module, info)
            info.reset()
    layerwise.LOADING_LAYERS.clear()
    root: Any = model
    if hasattr(root, "_original_do_torchao_reload"):
        root._do_torchao_reload = root._original_do_torchao_reload


def tensors_of(module: torch.nn.Module) -> Tensors:
    """Parameters and buffers of the module itself."""
    own = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def can_be_staged(module: torch.nn.Module, loaded: Collection[str]) -> bool:
    """Whether the module can be processed by itself once it has all of its weights.

    Attention is not: it comes after all others. Nor is a buffer that vLLM copies only if its own loader has loaded it.
    """
    return not waits_for_the_end(module) and not set(loaded) & module._non_persistent_buffers_set


def stage(target: Target, module: torch.nn.Module, others: Collection[torch.nn.Module]) -> Tensors:
    """Bring one module into the form that its loader knows, with memory that is not initialised.

    Args:
        target: the model.
        module: of that model.
        others: modules that are, or will be, staged as well.
    """
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import initialize_layerwise_reload, layerwise

    with set_current_vllm_config(target.vllm_config):
        initialize_layerwise_reload(module)
        put_back(module, but={module, *others})
        layerwise.materialize_layer(module, layerwise.get_layerwise_info(module))
        _unwrap(module)
    return tensors_of(module)


def process(target: Target, module: torch.nn.Module) -> None:
    """Have vLLM process a staged module, and copy the outcome to where kernels read it."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import layerwise

    with set_current_vllm_config(target.vllm_config), torch.no_grad():
        forget_prepacked_experts(module)
        layerwise._layerwise_process(module, layerwise.get_layerwise_info(module))


def kernel_tensors(module: torch.nn.Module) -> Tensors:
    """Of a staged module, the tensors that kernels read."""
    from vllm.model_executor.model_loader.reload import layerwise

    kernel = layerwise.get_layerwise_info(module).kernel_tensors
    assert kernel is not None
    return {**kernel[0], **kernel[1]}


def process_watched(target: Target, module: torch.nn.Module) -> str:
    """As :func:`process`; also say why weights cannot be written where kernels read them, empty when they can.

    They can when processing does nothing to them: kernels read tensors of the same geometry, no operation but copies
    of a tensor to itself reads a weight on the way, and nobody holds on to the staged memory.
    """
    staged = {name: tensor.detach() for name, tensor in tensors_of(module).items()}
    kernel = kernel_tensors(module)
    watch = _Watch(staged, kernel)
    with watch:
        process(target, module)
    for name, tensor in staged.items():
        now = kernel.get(name)
        if now is None or (now.shape, now.stride(), now.dtype) != (tensor.shape, tensor.stride(), tensor.dtype):
            return f"{name} has another form for kernels"
        if not torch.equal(_bits(now), _bits(tensor)):
            return f"{name} has other values for kernels"
    if watch.seen:
        return f"its processing uses {watch.seen[0]}"
    alone = _holders(torch.empty(1))
    apart = [name for name, tensor in staged.items() if _storage(tensor) != _storage(kernel[name])]
    held = [name for name in apart if _holders(staged[name]) > alone]
    return f"its kernels hold on to {held[0]}" if held else ""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which operations do something with the weights of a module."""

    def __init__(self, staged: Tensors, kernel: Tensors) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []
        self._staged = {_storage(tensor) for tensor in staged.values()}
        self._kernel = {_storage(tensor) for tensor in kernel.values()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        touched = [value for value in _tensors((*args, *(kwargs or {}).values())) if _storage(value) in self._staged]
        if touched and not func.is_view and not self._is_harmless(func, args):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))

    def _is_harmless(self, func: Any, args: Any) -> bool:
        """A copy of a tensor to itself, or to the kernels' own."""
        if func is not torch.ops.aten.copy_.default:
            return False
        to, of = args[0], args[1]
        return _storage(to) == _storage(of) or _storage(to) in self._kernel


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _holders(tensor: torch.Tensor) -> int:
    return int(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _unwrap(module: torch.nn.Module) -> None:
    """Let parameters have the loaders that they came with, not those which only keep what they are given."""
    from vllm.model_executor.model_loader.reload import layerwise

    for tensor in tensors_of(module).values():
        if hasattr(tensor, "weight_loader"):
            loader: Any = tensor
            loader.weight_loader = layerwise._get_original_loader(tensor)
