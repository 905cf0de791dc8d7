"""A detached module is a served one over again with all that it refers to, so that vLLM can process it meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self, cast

import torch

from ckpt_transport_vllm.detached_objects import DetachedObjects
from ckpt_transport_vllm.load_format import tensors_of
from ckpt_transport_vllm.shadow_module import beside, remember_form
from ckpt_transport_vllm.updated_model import UpdatedModel

PARTS = ("_parameters", "_buffers", "_non_persistent_buffers_set")
"""Of a module, what its tensors are in."""


class DetachedModule:
    """A copy of a module and its children. No memory and no object that can be changed is the served module's.

    Use it as a context: at its end the copy is gone.

    Where a module has no quantization method, vLLM runs no code of it. Its copy refers to the same objects, and has no
    children.

    Args:
        target: the model.
        served: a module of it. It is read while forward passes run.

    Attributes:
        module: the copy. What it has for kernels lies in memory of its own, and has the same values.

    Raises:
        NotDetachableError: the module refers to something of which there is no copy, as another module.
    """

    def __init__(self, target: UpdatedModel, served: torch.nn.Module) -> None:
        self._memory = _copied_memory(served)
        self._objects = DetachedObjects(self._beside, _configuration(target))
        try:
            self.module = self._objects.module(served, "it") if _is_processed(served) else self._alone(served)
            for each, copied in zip(_parts(served), self.module.modules(), strict=True):
                remember_form(each, copied)
            self._objects.note()
        except BaseException:
            self._forget()
            raise

    def tensors(self) -> Iterator[torch.Tensor]:
        """What its parameters and buffers are now, and its children's."""
        for each in self.module.modules():
            yield from tensors_of(each).values()

    def changed(self) -> str:
        """What of the served module would have been changed for others, too; empty for nothing.

        That is all but the attributes of the module itself and of its quantization method.
        """
        own: Any = self.module
        method = getattr(own, "quant_method", None)
        return self._objects.changed((own, method, *(vars(own)[part] for part in PARTS)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Give its memory back. Modules and their tensors refer to each other, and would wait for a collection."""
        for each in list(self.module.modules()):
            vars(each).clear()
        self._forget()

    def _forget(self) -> None:
        self._memory.clear()
        self._objects.clear()

    def _alone(self, served: torch.nn.Module) -> torch.nn.Module:
        alone: Any = object.__new__(type(served))
        vars(alone).update(vars(served), _modules={})
        for part in ("_parameters", "_buffers"):
            tensors = vars(served)[part].items()
            vars(alone)[part] = {name: None if each is None else self._beside(each) for name, each in tensors}
        alone._non_persistent_buffers_set = set(served._non_persistent_buffers_set)
        return cast(torch.nn.Module, alone)

    def _beside(self, tensor: torch.Tensor) -> torch.Tensor:
        there, memory = tensor.detach(), self._memory.get(_storage(tensor))
        if memory is not None:
            there = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            there.set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())
        copied = beside(tensor, there)
        assert copied is not None
        return copied


def memory_nbytes(served: torch.nn.Module) -> int:
    """Bytes that the parameters and buffers of a detached module take."""
    return sum(storage.nbytes() for storage in _storages(served).values())


def _is_processed(served: torch.nn.Module) -> bool:
    return getattr(served, "quant_method", None) is not None


def _parts(served: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules of which there are copies."""
    return list(served.modules()) if _is_processed(served) else [served]


def _storages(served: torch.nn.Module) -> Mapping[int, torch.UntypedStorage]:
    tensors = [tensor for each in _parts(served) for tensor in tensors_of(each).values() if not tensor.is_meta]
    return {_storage(tensor): tensor.untyped_storage() for tensor in tensors}


def _copied_memory(served: torch.nn.Module) -> dict[int, torch.UntypedStorage]:
    with torch.no_grad():
        raw = {key: _bytes_of(storage) for key, storage in _storages(served).items()}
        return {key: each.clone().untyped_storage() for key, each in raw.items()}


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _configuration(target: UpdatedModel) -> tuple[object, ...]:
    """What vLLM's code finds whatever it is given: the configuration of the engine."""
    config = target.vllm_config
    return (config, target.model_config, *vars(config).values())
