"""Remembers the memory that a module's tensors once had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from ckpt_transport.replay.memory_map import storage_key

_weakly: Any = StorageWeakRef


class PastMemory:
    """Remembers the memory of a module's tensors, without keeping it alive."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, str]] = {}
        self._now: tuple[list[str], list[int]] = [], []

    def remember(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """These are the tensors of the module at present. As long as one is known, no other memory gets its key."""
        present = list(tensors), list(map(storage_key, tensors.values()))
        if present == self._now:
            return
        self._now = present
        alive = {key: (memory, name) for key, (memory, name) in self._known.items() if not memory.expired()}
        now = {storage_key(tensor): (_weakly(tensor.untyped_storage()), name) for name, tensor in tensors.items()}
        self._known = alive | now

    def name_of(self, key: int) -> str:
        """The tensor that had the memory with this :func:`storage_key`, while somebody keeps that; else empty."""
        memory, name = self._known.get(key, (None, ""))
        return "" if memory is None or memory.expired() else name
