"""Notices what a loader may not write, while it is recorded."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ckpt_transport.replay.layout import Owner, OwnerKind
from ckpt_transport.replay.memory_map import MemoryMap


class RefusedWrites(TorchFunctionMode):
    """Sees each operation before the classes of its tensors do, which may refuse it.

    Args:
        memory: finds the tensors of the module.

    Attributes:
        refused: the tensor of the module that the last failed operation should have written; None when there is none.
    """

    def __init__(self, memory: MemoryMap) -> None:
        super().__init__()
        self._memory = memory
        self.refused: Owner | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except Exception:
            written = args[0] if args and _writes(func) else None
            if isinstance(written, torch.Tensor) and not written.is_inference():
                with torch._C.DisableTorchFunctionSubclass():
                    owner = self._memory.owner(written)
                self.refused = owner if owner is not None and owner.kind is OwnerKind.TARGET else None
            raise


def _writes(func: Any) -> bool:
    """Whether an operation writes its first argument: such names end with one underscore."""
    name = str(getattr(func, "__name__", ""))
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
