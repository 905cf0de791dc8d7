"""Notes which tensors the names of a module are bound to, compares, and puts them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter, eq
from typing import Any

import torch

from ckpt_transport.errors import RecordingError
from ckpt_transport.memory import why_not_plain

Fingerprint = tuple[tuple[Any, ...], ...]
"""Names, addresses, shapes, strides and types, each of all tensors: to compare columns takes no step of Python each."""


Column = Callable[[torch.Tensor], object]

COLUMNS: Sequence[Column] = (
    torch.Tensor.data_ptr,
    torch.Tensor.size,
    torch.Tensor.stride,
    attrgetter("dtype"),
)
"""What a fingerprint says of each tensor."""


def named_tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer, tied ones by each of their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> Fingerprint:
    """Differs when a tensor has moved, or changed its shape or type; not when its values changed."""
    with torch._C.DisableTorchFunctionSubclass():
        return tuple(tensors), *(tuple(map(column, tensors.values())) for column in COLUMNS)


def has_fingerprint(tensors: Mapping[str, torch.Tensor], expected: Fingerprint) -> bool:
    """Whether that is the fingerprint of ``tensors``, whatever their names; keeps nothing, and ends early."""
    return _has(COLUMNS, tensors, expected)


def has_addresses(tensors: Mapping[str, torch.Tensor], expected: Fingerprint) -> bool:
    """Whether as many tensors are at the addresses of that fingerprint."""
    return _has(COLUMNS[:1], tensors, expected)


def _has(columns: Sequence[Column], tensors: Mapping[str, torch.Tensor], expected: Fingerprint) -> bool:
    """Whether the first columns of a fingerprint are those of ``tensors``."""
    names, *known = expected
    with torch._C.DisableTorchFunctionSubclass():
        return len(tensors) == len(names) and all(
            all(map(eq, map(column, tensors.values()), values)) for column, values in zip(columns, known, strict=False)
        )


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of ``tensor``, without its class and its history."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.detach()


def all_plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As :func:`plain`, of each."""
    with torch._C.DisableTorchFunctionSubclass():
        return dict(zip(tensors, map(torch.Tensor.detach, tensors.values()), strict=True))


class Bindings:
    """What every name of a module was bound to at one time, to be compared and put back.

    Raises:
        RecordingError: a tensor is not plain memory; names it.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._slots = [(each, dict(each._parameters), dict(each._buffers)) for each in module.modules()]
        self.tensors = dict(named_tensors(module))
        for name, tensor in self.tensors.items():
            if reason := why_not_plain(tensor):
                raise RecordingError(f"{name} cannot be watched: {reason}")
        self._data = {name: plain(tensor) for name, tensor in self.tensors.items()}
        self._module = module

    def changed(self) -> list[str]:
        """Names that are bound to something else now, or to nothing, or are new."""
        now = dict(named_tensors(self._module))
        different = [
            name for name, tensor in self.tensors.items() if now.get(name) is not tensor or self._moved(name, tensor)
        ]
        return different + [name for name in now if name not in self.tensors]

    def _moved(self, name: str, tensor: torch.Tensor) -> bool:
        before = self._data[name]
        return (
            tensor.untyped_storage()._cdata != before.untyped_storage()._cdata
            or tensor.storage_offset() != before.storage_offset()
            or (tensor.shape, tensor.stride(), tensor.dtype) != (before.shape, before.stride(), before.dtype)
        )

    def put_back(self) -> None:
        """Bind every name to what it was bound to."""
        for module, parameters, buffers in self._slots:
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
        for name, tensor in self.tensors.items():
            if self._moved(name, tensor):
                tensor.data = self._data[name]
