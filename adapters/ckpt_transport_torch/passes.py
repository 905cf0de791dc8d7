"""Makes every call of a module a pass through a gate."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import update_wrapper
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ckpt_transport import Gate, UsageError


class GatedForward:
    """Is the ``forward`` of a module whose every call is a pass through a gate.

    A copy of the module, by ``copy.deepcopy`` or pickle, has tensors of its own, which no update writes. It gets the
    ``forward`` beneath, bound to the copy.
    """

    def __init__(self, forward: Callable[..., Any], gate: Gate) -> None:
        update_wrapper(self, forward)  # its signature is asked for, as by transformers' generate
        self._forward, self._gate, self._process = forward, gate, os.getpid()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._gate.run(self._forward, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        return copy.deepcopy(self._forward, memo)

    def __reduce__(self) -> str | tuple[Any, ...]:
        return self._forward.__reduce__()

    @property
    def is_of_this_process(self) -> bool:
        """False in a child after a fork, which nobody updates."""
        return self._process == os.getpid()


_with_gates: WeakKeyDictionary[torch.nn.Module, None] = WeakKeyDictionary()
"""Modules whose forward was replaced, and may still be."""


def refuse_attached(module: torch.nn.Module) -> None:
    """See that no other sink updates the module, a part of it, or one that it is a part of.

    Two would overwrite each other's versions, and take them back.

    Raises:
        UsageError: one does.
    """
    kind = type(module).__name__
    if _is_attached(module):
        raise UsageError(f"this {kind} is attached already; use the address of that attachment, or close it first")
    for name, part in module.named_modules():
        if _is_attached(part):
            raise UsageError(f"{name} of this {kind} is attached already; close that attachment first")
    for whole in _attached():
        for name, part in whole.named_modules():
            if part is module:
                raise UsageError(
                    f"this {kind} is {name} of a {type(whole).__name__} that is attached already; use the address of "
                    "that attachment, or close it first"
                )


def _attached() -> list[torch.nn.Module]:
    modules = (reference() for reference in _with_gates.keyrefs())  # a list, as others may be attached meanwhile
    return [module for module in modules if module is not None and _is_attached(module)]


def _is_attached(module: torch.nn.Module) -> bool:
    forward = module.__dict__.get("forward")
    return isinstance(forward, GatedForward) and forward.is_of_this_process


def passes_through(module: torch.nn.Module, gate: Gate) -> Callable[[], None]:
    """Make every call of ``module(...)`` a pass through ``gate``; return what undoes it.

    The module's ``forward`` is replaced, and no hook is used: torch calls hooks after an exception, and not after an
    interrupt, which would leave the gate held.
    """
    had_its_own, forward = "forward" in module.__dict__, module.forward
    gated = GatedForward(forward, gate)

    def undo() -> None:
        if module.__dict__.get("forward") is not gated:
            return
        if had_its_own:
            module.forward = forward
        else:
            del module.forward

    module.forward = gated
    _with_gates[module] = None
    return undo
