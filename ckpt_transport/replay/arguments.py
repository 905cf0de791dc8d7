"""Turns arguments of torch operations into values, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ckpt_transport import dtypes
from ckpt_transport.replay.layout import Argument, Items, Named, Ref

UNKNOWN = Named("tensor", "unknown")
"""A tensor that belongs to nobody. No operation with one is ever carried out."""


def encode(value: Any, place: Callable[[torch.Tensor], Ref | None]) -> Argument:
    """An argument as a value; ``place`` finds the memory of tensors."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        return place(value) or UNKNOWN
    if isinstance(value, torch.dtype):
        return Named("dtype", str(value).removeprefix("torch."))
    if isinstance(value, torch.device):
        return Named("device", "target" if value.type != "cpu" else "cpu")
    if isinstance(value, (torch.memory_format, torch.layout)):
        kind = "memory_format" if isinstance(value, torch.memory_format) else "layout"
        return Named(kind, str(value).removeprefix("torch."))
    if isinstance(value, (list, tuple)):
        return Items(tuple(encode(item, place) for item in value))
    return UNKNOWN


def decode(value: Argument, tensor: Callable[[Ref], torch.Tensor], device: torch.device) -> Any:
    """The argument again; ``tensor`` finds tensors, ``device`` is where the targets are."""
    match value:
        case Ref():
            return tensor(value)
        case Named("device", "target"):
            return device
        case Named("device", name):
            return torch.device(name)
        case Named(_, name):
            return getattr(torch, name)
        case Items():
            return [decode(item, tensor, device) for item in value.items]
    return value


def view(storage: torch.Tensor, ref: Ref) -> torch.Tensor:
    """What ``ref`` is, in a tensor that begins where its memory begins."""
    dtype = dtypes.TORCH[ref.geometry.dtype]
    size = dtype.itemsize
    strides = [stride // size for stride in ref.geometry.strides]
    start = int(storage.storage_offset()) * storage.itemsize + ref.geometry.offset
    empty = torch.empty(0, dtype=dtype, device=storage.device)
    return empty.set_(storage.untyped_storage(), start // size, ref.shape, strides)


def torch_operation(name: str) -> Any:
    """The torch operation of that name, as ``aten::exp.default``."""
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)
