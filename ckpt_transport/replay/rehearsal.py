"""Finds out whether running a loader on fake tensors has changed a module that serves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from ckpt_transport.memory import usable_cores
from ckpt_transport.memory.digest import as_bytes, digest
from ckpt_transport.replay.memory_map import storage_key, whole_memory


class Rehearsal:
    """Watches the bytes of a module while its loader runs on fake tensors.

    The recorder keeps what a loader does through torch from these bytes. It cannot keep what goes past torch, as
    through NumPy; that is noticed here when it has happened.

    Attributes:
        spoiled: the module may not hold what it held before: bytes differ, or a loader is running just now.
    """

    def __init__(self) -> None:
        self.spoiled = False

    @contextmanager
    def watching(self, tensors: Iterable[torch.Tensor]) -> Iterator[None]:
        """Within the block a loader runs. The memory of ``tensors`` is read once before and once after it."""
        storages = list({storage_key(each): whole_memory(each) for each in tensors if not each.is_meta}.values())
        before = _digests(storages)
        self.spoiled = True
        try:
            yield
        finally:
            self.spoiled = _digests(storages) != before


def _digests(storages: list[torch.Tensor]) -> list[bytes]:
    with ThreadPoolExecutor(usable_cores(), "ckpt-transport-digest") as threads:
        return list(threads.map(lambda raw: as_bytes(digest([raw])), storages))
