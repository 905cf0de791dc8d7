"""Digests of a module's memory tell whether running its loader on fake tensors has changed what it serves.

The recorder keeps what a loader does through torch from this memory. It cannot keep what goes past torch, as through
NumPy; that is noticed by comparing when it has happened.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

from ckpt_transport.memory import usable_cores
from ckpt_transport.memory.digest import as_bytes, digest
from ckpt_transport.replay.memory_map import storage_key, whole_memory


def digests(tensors: Iterable[torch.Tensor]) -> list[bytes]:
    """The digest of each memory that these tensors are views of; it is read once."""
    storages = {storage_key(each): whole_memory(each) for each in tensors if not each.is_meta}
    with ThreadPoolExecutor(usable_cores(), "ckpt-transport-digest") as threads:
        return list(threads.map(lambda raw: as_bytes(digest([raw])), storages.values()))
