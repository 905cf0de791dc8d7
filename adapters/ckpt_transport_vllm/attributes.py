"""Knows what a module of vLLM keeps beside its parameters and buffers, as the functions that call kernels of CPUs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch

STRUCTURE = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "quant_method"})
"""Attributes that are looked at otherwise."""
PLAIN = (type(None), bool, int, float, str)
_ABSENT: Any = object()


class Attributes:
    """Holds what a module and its quantization method have as attributes when this is made."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._before = [dict(owner) for owner in _owners(module)]

    def why_not_exchanged(self) -> str:
        """Why two copies of the module cannot exchange what has changed since; empty when they can.

        A graph that was captured on a GPU holds on to memory, whatever an attribute refers to afterwards. On a CPU a
        function is looked up each time that it is called.
        """
        on_host = all(tensor.is_cpu for tensor in (*self._module.parameters(), *self._module.buffers()))
        for before, now in zip(self._before, _owners(self._module), strict=True):
            may_hold_functions = on_host and now is vars(self._module)
            for name in _changed(before, now):
                value = now.get(name)
                if not (isinstance(value, PLAIN) or (may_hold_functions and _is_function(value))):
                    return f"its processing makes {name}"
        return ""


def exchange(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Exchange all attributes in which two copies of a module differ, but for tensors and modules."""
    for mine, theirs in zip(_owners(one), _owners(other), strict=True):
        for name in _changed(mine, theirs):
            before, after = mine.get(name, _ABSENT), theirs.get(name, _ABSENT)
            _put(mine, name, after)
            _put(theirs, name, before)


def _put(owner: dict[str, Any], name: str, value: Any) -> None:
    if value is _ABSENT:
        owner.pop(name, None)
    else:
        owner[name] = value


def _owners(module: torch.nn.Module) -> Iterator[dict[str, Any]]:
    yield vars(module)
    method = getattr(module, "quant_method", None)
    if method is not None:
        yield vars(method)


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        name
        for name in sorted((before.keys() | now.keys()) - STRUCTURE)
        if before.get(name, _ABSENT) is not now.get(name, _ABSENT)
    ]


def _is_function(value: object) -> bool:
    """Whether it is a function that does not refer to a module."""
    if not inspect.isfunction(value):
        return False
    return not any(isinstance(cell.cell_contents, torch.nn.Module) for cell in value.__closure__ or ())
