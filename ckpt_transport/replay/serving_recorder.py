"""Records a loader while its module serves, and stops it before it does what a forward pass could see."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from ckpt_transport.replay.layout import OwnerKind
from ckpt_transport.replay.memory_map import MemoryMap
from ckpt_transport.replay.recorder import Recorder, tensors_in

LEAVES_TORCH = frozenset(
    {
        torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__dlpack__, torch.Tensor.data_ptr,
        torch.Tensor.untyped_storage, torch.Tensor.storage, torch.Tensor.data.__set__,  # type: ignore[attr-defined]
        torch.Tensor.__cuda_array_interface__.__get__, torch.Tensor.share_memory_, torch.Tensor.tolist,
    }
)  # fmt: skip
"""Ways to the memory of a tensor that the recorder does not see, and to give it another memory."""


class SeenByPassesError(BaseException):
    """The loader was about to do what forward passes could see.

    It is no ``Exception``, so that no loader goes on after it.
    """


class ServingRecorder(Recorder):  # type: ignore[no-untyped-call]
    """A recorder that stops the loader, by :class:`SeenByPassesError`, before

    * it takes a tensor's memory past torch, gives it other memory, or changes its form;
    * it looks at a value of what it loads, which is not there: it could set the module up by it;
    * it binds a parameter, a buffer or a module.

    What a loader does to other objects, and what C++ does to memory past torch, is not noticed.
    """

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            thread = threading.get_ident()

            def bind(module: torch.nn.Module, name: str, value: object) -> None:
                if threading.get_ident() == thread:
                    raise SeenByPassesError(f"binds {name}")

            for register in (
                register_module_parameter_registration_hook,
                register_module_buffer_registration_hook,
                register_module_module_registration_hook,
            ):
                stack.callback(register(bind).remove)
            stack.enter_context(_KeepsToTorch(self.memory))
            with super().watching():
                yield

    def _write(self, func: Any, args: Any, kwargs: Any) -> Any:
        if torch.Tag.inplace_view in func.tags:
            self._stop_at(func, args, kwargs, OwnerKind.TARGET)
        return super()._write(func, args, kwargs)

    def _look(self, func: Any, args: Any, kwargs: Any) -> None:
        self._stop_at(func, args, kwargs, OwnerKind.SOURCE, OwnerKind.RESULT)
        super()._look(func, args, kwargs)

    def _stop_at(self, func: Any, args: Any, kwargs: Any, *kinds: OwnerKind) -> None:
        if any(owner.kind in kinds for owner in self._owners(tensors_in(args, kwargs))):
            raise SeenByPassesError(f"calls {func}")


class _KeepsToTorch(TorchFunctionMode):
    """Stops whoever takes memory that is known past torch."""

    def __init__(self, memory: MemoryMap) -> None:
        super().__init__()
        self._memory = memory

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LEAVES_TORCH and args and self._memory.owner(args[0]) is not None:
            raise SeenByPassesError(f"calls {func}")
        return func(*args, **(kwargs or {}))
