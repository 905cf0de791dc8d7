"""Keeps a loader from writing to memory that forward passes may read, while it runs beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ckpt_transport.replay.memory_map import storage_key
from ckpt_transport.replay.recorder import tensors_in
from ckpt_transport.replay.serving_recorder import SeenByPassesError


class WritableMemory:
    """Memory that a loader may write: some tensors' own, and what it makes itself.

    Args:
        tensors: whose memory it may write.
    """

    def __init__(self, tensors: Iterable[torch.Tensor] = ()) -> None:
        self._tensors = {storage_key(tensor): tensor for tensor in tensors}
        """By their memory. They are kept, so that no other memory gets the key of one."""

    def check(
        self, func: Any, args: Any, kwargs: Any, is_known: Callable[[torch.Tensor], bool] = lambda tensor: False
    ) -> None:
        """
        Args:
            func, args, kwargs: an operation, before it is carried out.
            is_known: whether a tensor may be written for another reason.

        Raises:
            SeenByPassesError: it may write to other memory.
        """
        for tensor in _may_be_written(func, args, kwargs):
            if not self.holds(tensor) and not is_known(tensor):
                raise SeenByPassesError(f"calls {func} on memory that may be the model's")

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies in it."""
        return storage_key(tensor) in self._tensors

    def add_made(self, args: Any, kwargs: Any, result: Any) -> None:
        """Hear what an operation has returned. What it was given by none of its arguments is the loader's own."""
        there = {storage_key(tensor) for tensor in tensors_in(args, kwargs)}
        for tensor in tensors_in((result,), {}):
            if storage_key(tensor) not in there:
                self._tensors.setdefault(storage_key(tensor), tensor)


class WritesApart(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within the context operations are carried out, and stopped by :class:`SeenByPassesError` before they write to
    other memory.

    Args:
        tensors: whose memory may be written, besides what is made within the context.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory = WritableMemory(tensors)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch would import its compiler at the first operation, to say that this class is not compiled."""
        return False

    def may_write(self, tensor: torch.Tensor) -> bool:
        """Whether it lies in memory that may be written."""
        return self._memory.holds(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        self._memory.check(func, args, named)
        result = func(*args, **named)
        self._memory.add_made(args, named, result)
        return result


def _may_be_written(func: Any, args: Any, kwargs: Any) -> Iterator[torch.Tensor]:
    """Tensors that an operation may write; of one that is not torch's own, whatever it is given."""
    if func.namespace not in ("aten", "prims", "prim"):
        yield from tensors_in(args, kwargs)
    elif func._schema.is_mutable:
        named = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            if argument.name in named and argument.alias_info is not None and argument.alias_info.is_write:
                yield from tensors_in([named[argument.name]], {})
