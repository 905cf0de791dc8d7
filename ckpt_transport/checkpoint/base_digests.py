"""What an adapter is merged into has a digest, since the same adapter on other weights is another version."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from ckpt_transport.checkpoint.boxes import BoxedTensor
from ckpt_transport.memory import byte_view
from ckpt_transport.memory.digest import as_bytes, digest

BLOCK_BYTES = 16 << 20
"""So much of a tensor is read at once. In host memory it is copied: torch could not free what NumPy has seen."""


class _Known(NamedTuple):
    """A digest of a tensor's bytes.

    Attributes:
        memory: is gone when the tensor's memory is.
        writes: how often torch had written to it.
        digest: of its bytes then.
    """

    memory: StorageWeakRef
    writes: int
    digest: bytes

    @property
    def freed(self) -> bool:
        return bool(self.memory.expired())  # type: ignore[no-untyped-call]


class BaseDigests:
    """Makes digests of the weights beneath adapters. These are frozen, so that each is read once.

    They are read again after torch has written to them. What is written past torch, as through NumPy, is not seen.
    """

    def __init__(self) -> None:
        self._known: dict[object, _Known] = {}

    def add(self, found: hashlib.blake2b, name: str, base: BoxedTensor) -> None:
        """Add the name, type, shape and bytes of what this rank has of a tensor to a hash."""
        found.update(f"{name} {base.dtype} {base.shape}".encode())
        for box in base.boxes:
            found.update(str(box.offsets).encode())
            found.update(self._of(box.tensor))

    def forget_freed(self) -> None:
        """Forget the digests of memory that is gone."""
        self._known = {key: known for key, known in self._known.items() if not known.freed}

    def _of(self, tensor: torch.Tensor) -> bytes:
        key = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device
        known = self._known.get(key)
        counted = not tensor.is_inference()
        if known is not None and counted and not known.freed and known.writes == tensor._version:
            return known.digest
        made = hashlib.blake2b(digest_size=16)
        for block in _blocks(tensor):
            made.update(as_bytes(digest([block])))
        if counted:
            memory = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
            self._known[key] = _Known(memory, tensor._version, made.digest())
        return made.digest()


def _blocks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    raw = byte_view(tensor.detach().contiguous())
    for start in range(0, raw.numel(), BLOCK_BYTES):
        block = raw[start : start + BLOCK_BYTES]
        yield block.clone() if block.is_cpu else block
