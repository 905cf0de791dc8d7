"""Finds out whether vLLM's processing of a module does anything to its weights."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ckpt_transport_vllm.attributes import Attributes
from ckpt_transport_vllm.graph_tensors import are_alike, described
from ckpt_transport_vllm.load_format import Tensors, process, tensors_of
from ckpt_transport_vllm.updated_model import UpdatedModel


@dataclass(frozen=True, slots=True)
class Processing:
    """What was seen when vLLM processed a module.

    Attributes:
        reason: why weights cannot be written where kernels read them; empty when they can.
        unexchangeable: why two copies of the module cannot exchange what processing has made; empty when they can.
    """

    reason: str
    unexchangeable: str

    @classmethod
    def of(cls, target: UpdatedModel, module: torch.nn.Module) -> Self:
        """Have vLLM process a staged module of ``target``, or a copy of one, and watch."""
        before = Attributes(module)
        reason = process_watched(target, module)
        return cls(reason, before.why_not_exchanged())


def kernel_tensors(module: torch.nn.Module) -> Tensors:
    """Of a staged module, the tensors that kernels read."""
    from vllm.model_executor.model_loader.reload import layerwise

    kernel = layerwise.get_layerwise_info(module).kernel_tensors
    assert kernel is not None
    return {**kernel[0], **kernel[1]}


def process_watched(target: UpdatedModel, module: torch.nn.Module) -> str:
    """As :func:`process`; also say why weights cannot be written where kernels read them, empty when they can.

    They can when processing does nothing to them: kernels read tensors of the same geometry, no operation but copies
    of a tensor to itself reads a weight on the way, and nobody holds on to the staged memory, but for what
    :class:`~ckpt_transport_vllm.graph_tensors.GraphTensors` has refer to the kernels' own again.
    """
    staged = {name: tensor.detach() for name, tensor in tensors_of(module).items()}
    kernel = kernel_tensors(module)
    before = {key: getattr(owner, key[-1]) for key, owner in described(module)}
    operations, calls = _Operations(staged, kernel), _Calls(staged)
    with operations, calls:
        process(target, module)
    for name, tensor in staged.items():
        now = kernel.get(name)
        if now is None or (now.shape, now.stride(), now.dtype) != (tensor.shape, tensor.stride(), tensor.dtype):
            return f"{name} has another form for kernels"
        if not torch.equal(_bits(now), _bits(tensor)):
            return f"{name} has other values for kernels"
    seen = [*operations.seen, *calls.seen]
    if seen:
        return f"its processing uses {seen[0]}"
    alone = _holders(torch.empty(1))
    apart = [name for name, tensor in staged.items() if _storage(tensor) != _storage(kernel[name])]
    returning = _returning(module, before, staged, kernel)
    held = [name for name in apart if _holders(staged[name]) - returning[name] > alone]
    return f"its kernels hold on to {held[0]}" if held else ""


def _returning(
    module: torch.nn.Module, before: Mapping[tuple[str, str], torch.Tensor], staged: Tensors, kernel: Tensors
) -> Counter[str]:
    """How many descriptions of a kernel have each staged tensor only until a version is loaded.

    They had the kernels' own before, and get that back. Nobody else has the object that they have.
    """
    names = {_storage(tensor): name for name, tensor in staged.items()}
    alone = _references(SimpleNamespace(tensor=torch.empty(0)), "tensor")
    found: Counter[str] = Counter()
    for key, owner in described(module):
        name, own = names.get(_storage(getattr(owner, key[-1]))), before.get(key)
        if name is None or own is None or _references(owner, key[-1]) > alone:
            continue
        if own.data_ptr() == kernel[name].data_ptr() and are_alike(own, getattr(owner, key[-1])):
            found[name] += 1
    return found


def _references(owner: Any, name: str) -> int:
    """By how many the object is referred to that is an attribute of ``owner``."""
    return sys.getrefcount(getattr(owner, name))


UNSEEN = frozenset({"data_ptr", "__dlpack__", "numpy"})
"""Methods that hand memory to code which torch does not see."""


class _Calls(TorchFunctionMode):
    """Which calls take the weights of a module to where the dispatcher does not see what is done with them.

    Operators of other libraries need not pass a dispatch mode: those with one kernel for every kind of tensor do not.
    """

    def __init__(self, staged: Tensors) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._staged = {_storage(tensor) for tensor in staged.values()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        foreign = isinstance(func, (OpOverload, OpOverloadPacket)) and not str(func).startswith("aten.")
        unseen = foreign or getattr(func, "__name__", "") in UNSEEN
        if unseen and _arguments_in(self._staged, args, kwargs):
            self.seen.append(str(func) if foreign else str(func.__name__))
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which operations do something with the weights of a module."""

    def __init__(self, staged: Tensors, kernel: Tensors) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []
        self._staged = {_storage(tensor) for tensor in staged.values()}
        self._kernel = {_storage(tensor) for tensor in kernel.values()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        touched = not func.is_view and _arguments_in(self._staged, args, kwargs)
        if touched and not self._is_harmless(func, args):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))

    def _is_harmless(self, func: Any, args: Any) -> bool:
        """A copy of a tensor to itself, or to the kernels' own."""
        if func is not torch.ops.aten.copy_.default:
            return False
        to, of = args[0], args[1]
        return _storage(to) == _storage(of) or _storage(to) in self._kernel


def _arguments_in(storages: Collection[int], args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The tensors among arguments that are views of one of these."""
    tensors = (each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor))
    return [tensor for tensor in tensors if _storage(tensor) in storages]


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _holders(tensor: torch.Tensor) -> int:
    return int(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
