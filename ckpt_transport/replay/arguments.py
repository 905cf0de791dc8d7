"""Turns arguments of torch operations into values that hold no tensors, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ckpt_transport import dtypes
from ckpt_transport.replay.layout import Ref

TARGETS_DEVICE = torch.device("meta")
"""Stands for the device that the targets are on."""


def encode(value: Any, place: Callable[[torch.Tensor], Ref | None]) -> Any:
    """An argument without tensors; ``place`` finds their memory.

    A tensor that belongs to nobody becomes None. No operation with one is ever carried out.
    """
    if isinstance(value, torch.Tensor):
        return place(value)
    if isinstance(value, torch.device):
        return value if value.type == "cpu" else TARGETS_DEVICE
    return tuple(encode(item, place) for item in value) if isinstance(value, (list, tuple)) else value


def decode(value: Any, tensor: Callable[[Ref], torch.Tensor], device: torch.device) -> Any:
    """The argument again; ``tensor`` finds tensors, ``device`` is where the targets are."""
    if isinstance(value, Ref):
        return tensor(value)
    if isinstance(value, tuple):
        return [decode(item, tensor, device) for item in value]
    return device if isinstance(value, torch.device) and value == TARGETS_DEVICE else value


def view(storage: torch.Tensor, ref: Ref) -> torch.Tensor:
    """What ``ref`` is, in a tensor that begins where its memory begins."""
    size = ref.itemsize
    strides = [stride // size for stride in ref.strides]
    start = int(storage.storage_offset()) * storage.itemsize + ref.offset
    empty = torch.empty(0, dtype=dtypes.TORCH[ref.dtype], device=storage.device)
    return empty.set_(storage.untyped_storage(), start // size, ref.shape, strides)
