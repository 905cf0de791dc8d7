"""Has vLLM process a copy of a served module, to see what the processing of the module itself does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ckpt_transport.spi import SeenByPassesError, WritesApart
from ckpt_transport_vllm import load_format
from ckpt_transport_vllm.detached_module import DetachedModule
from ckpt_transport_vllm.processing import UNSEEN, Processing
from ckpt_transport_vllm.updated_model import UpdatedModel

COLLECTIVE = ("allreduce", "allgather", "reducescatter", "alltoall", "broadcast", "barrier", "send", "recv", "gather")
"""Parts of the names of operators by which ranks wait for each other, without underscores."""

REBINDS = frozenset({torch.Tensor.data.__set__, torch.Tensor.share_memory_})  # type: ignore[attr-defined]
"""Give a tensor other memory, which torch's dispatcher does not see."""


class SharedChangeError(Exception):
    """Processing changes what other modules, or forward passes, may use; names it."""


def rehearse_processing(
    target: UpdatedModel, served: torch.nn.Module, loaded: Mapping[str, torch.Tensor]
) -> Processing:
    """Have vLLM process a detached module, and watch.

    Args:
        target: the model.
        served: a module of it. Nothing is changed that it refers to, and forward passes run.
        loaded: values for it in the form that its loader knows, by name.

    Raises:
        NotDetachableError: there is no copy of it.
        SharedChangeError: its processing changes what it may share.
        SeenByPassesError: its processing was about to.
    """
    with torch.no_grad(), DetachedModule(target, served) as detached:
        memory = _stage(target, detached, loaded)
        alone = _Alone(memory)
        with alone, _SeenCalls(alone):
            found = Processing.of(target, detached.module)
        if changed := detached.changed():
            raise SharedChangeError(f"its processing changes {changed}")
    return found


def _stage(target: UpdatedModel, detached: DetachedModule, loaded: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Bring a detached module into the form that its loader knows, with these values.

    Returns: all memory that it has then, in tensors of their own: who holds on to one of its parameters can be told.
    """
    memory = [tensor.detach() for tensor in detached.tensors()]
    for name, tensor in load_format.stage(target, detached.module, ()).items():
        if name in loaded:
            tensor.detach().copy_(loaded[name].detach())
    return [*memory, *(tensor.detach() for tensor in detached.tensors())]


class _Alone(WritesApart):  # type: ignore[no-untyped-call]
    """As :class:`~ckpt_transport.spi.WritesApart`; operations for which ranks wait for each other are stopped, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func._schema.name).partition("::")[2].replace("_", "")
        if func.namespace != "aten" and any(part in name for part in COLLECTIVE):
            raise SeenByPassesError(f"calls {func}, for which ranks wait for each other")
        return super().__torch_dispatch__(func, types, args, kwargs)


class _SeenCalls(TorchFunctionMode):
    """Refuses calls that hand memory which may be the model's to code that torch does not see."""

    def __init__(self, apart: WritesApart) -> None:
        super().__init__()
        self._apart = apart

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        unseen = func in REBINDS or getattr(func, "__name__", "") in UNSEEN
        if unseen and not self._apart.may_write(args[0]):
            raise SeenByPassesError(f"calls {func.__name__} on memory that may be the model's")
        return func(*args, **(kwargs or {}))
