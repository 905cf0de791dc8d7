"""Notes which tensors the names of a module are bound to, compares, and puts them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter, eq
from typing import Any

import torch

from ckpt_transport.errors import RecordingError
from ckpt_transport.memory import SameForm, why_not_plain
from ckpt_transport.replay.table_places import TablePlaces

Column = Callable[[torch.Tensor], object]

FORM: Sequence[Column] = (torch.Tensor.size, torch.Tensor.stride, attrgetter("dtype"))
"""What a fingerprint says of each tensor, besides its name and its address."""
WALKS = "named_parameters", "named_buffers", "named_modules"
"""Methods of modules, some of which have their own."""


class Fingerprint:
    """Where tensors lie, and in which form; equal ones mean equal places. It keeps none of them.

    Attributes:
        names, addresses: of all.
        form: shapes, strides and types, each of all: to compare columns takes no step of Python for each tensor.
        same_form: what tells in one call that others have that form, once some were found to have it.
        places: where in the tables of their module tensors of that fingerprint were; None where that says too little.
        is_placed: that was found out.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        values = list(tensors.values())
        with torch._C.DisableTorchFunctionSubclass():
            self.names, self.addresses = tuple(tensors), list(map(torch.Tensor.data_ptr, values))
            self.form = [list(map(column, values)) for column in FORM]
        self.same_form: SameForm | None = None
        self.places: TablePlaces | None = None
        self.is_placed = False

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fingerprint):
            return NotImplemented
        return self is other or (self.names, self.addresses, self.form) == (other.names, other.addresses, other.form)

    __hash__ = None  # type: ignore[assignment]

    def by_name(self) -> dict[str, tuple[object, ...]]:
        """What it says of each tensor."""
        return dict(zip(self.names, zip(self.addresses, *self.form, strict=True), strict=True))


def named_tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer, tied ones by each of their names."""
    if walks_as_torch_does(module):
        yield from _in_tables(module)
        return
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def walks_as_torch_does(module: torch.nn.Module) -> bool:
    """Whether it finds its tensors as any module does."""
    return all(getattr(type(module), name) is getattr(torch.nn.Module, name) for name in WALKS)


def _in_tables(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """As torch's own walk through a module, which looks each tensor up in a set that it does not need here."""
    modules = list(module.named_modules(remove_duplicate=False))
    for tables in (
        [(prefix, each._parameters) for prefix, each in modules],
        [(prefix, each._buffers) for prefix, each in modules],
    ):
        for prefix, table in tables:
            start = f"{prefix}." if prefix else ""
            for name, tensor in table.items():
                if tensor is not None:
                    yield start + name, tensor


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> Fingerprint:
    """Differs when a tensor has moved, or changed its shape or type; not when its values changed."""
    return Fingerprint(tensors)


def has_fingerprint(tensors: Sequence[torch.Tensor], expected: Fingerprint) -> bool:
    """Whether that is the fingerprint of ``tensors``, whatever their names; keeps none of them, and ends early."""
    if surely_has_fingerprint(tensors, expected):
        return True
    if not has_addresses(tensors, expected):
        return False
    with torch._C.DisableTorchFunctionSubclass():
        if not all(
            all(map(eq, map(column, tensors), known)) for column, known in zip(FORM, expected.form, strict=True)
        ):
            return False
        expected.same_form = SameForm.of(tensors)
    return True


def surely_has_fingerprint(found: Sequence[object], expected: Fingerprint) -> bool:
    """As :func:`has_fingerprint`, in two passes in C, of objects of any kind. That it says no proves nothing."""
    if expected.same_form is None:
        return False
    tensors: Any = found
    try:
        if not has_addresses(tensors, expected):
            return False
    except (TypeError, RuntimeError):  # of what is no tensor, or has no memory of its own
        return False
    with torch._C.DisableTorchFunctionSubclass():
        return expected.same_form.is_that_of(tensors)


def has_addresses(tensors: Sequence[torch.Tensor], expected: Fingerprint) -> bool:
    """Whether as many tensors are at the addresses of that fingerprint."""
    with torch._C.DisableTorchFunctionSubclass():
        return list(map(torch.Tensor.data_ptr, tensors)) == expected.addresses


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
