"""Copies plain objects and all that they refer to, so that nothing which refers to the originals sees a change."""

from __future__ import annotations

import contextlib
import enum
import logging
import weakref
from array import array
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import is_
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

SHARED: tuple[type, ...] = (type(None), bool, int, float, complex, str, bytes, type, enum.Enum, ModuleType)
"""What cannot be changed, or is the whole program's."""
SHARED_FROM = frozenset({"torch", "triton", "functools", "threading", logging.__name__})
"""Packages whose objects are shared: operators, kernels, caches, loggers."""
ODD: tuple[type, ...] = (deque, bytearray, array, np.ndarray)
"""What can be changed, and is neither a plain object nor a container that is looked into."""
Content = dict[Any, Any]


class NotDetachableError(Exception):
    """Something cannot be copied with all that it refers to; names it."""


class DetachedObjects:
    """Copies of objects, of each one only.

    Numbers, classes and the like are shared. A function is, too, as long as it does not refer to a module. What was
    given to one beforehand, by ``functools.partial``, is copied.

    Args:
        tensor: gives the copy of a tensor. Where that has the same memory, others see to it that nobody writes there.
        shared: other objects that are.
    """

    def __init__(self, tensor: Callable[[torch.Tensor], torch.Tensor], shared: tuple[object, ...] = ()) -> None:
        self._tensor = tensor
        self._copies: dict[int, tuple[Any, Any]] = {id(each): (each, each) for each in shared}
        """By the identity of the original, which is kept, so that no other object gets it."""
        self._made: list[tuple[str, Any]] = []
        self._contents: list[Content] = []

    def module(self, module: torch.nn.Module, path: str) -> torch.nn.Module:
        """A copy of a module and its children.

        Raises:
            NotDetachableError: it refers to something of which there is no copy.
        """
        for each in module.modules():
            blank: Any = object.__new__(type(each))
            self._copies[id(each)] = each, blank
        for name, each in module.named_modules():
            blank = self._copies[id(each)][1]
            where = f"{path}.{name}" if name else path
            blank.__dict__.update({key: self._copy(value, f"{where}.{key}") for key, value in dict(vars(each)).items()})
            self._made.append((where, blank))
        copied: torch.nn.Module = self._copies[id(module)][1]
        return copied

    def clear(self) -> None:
        """Forget all copies. Those of modules are empty then: they and their tensors refer to each other."""
        for value, copied in self._copies.values():
            if isinstance(copied, torch.nn.Module) and copied is not value:
                vars(copied).clear()
        self._copies.clear()
        self._made.clear()
        self._contents.clear()

    def note(self) -> None:
        """Remember what the copies have now."""
        self._contents = [_content(each) for _, each in self._made]

    def changed(self, but: tuple[object, ...]) -> str:
        """The place of something whose copy is no longer as :meth:`note` found it; empty where there is none.

        Args:
            but: copies that may have changed.
        """
        allowed = {id(each) for each in but}
        for (path, each), before in zip(self._made, self._contents, strict=True):
            now = _content(each)
            keys = [key for key in (*before, *now) if before.get(key, self) is not now.get(key, self)]
            if keys and id(each) not in allowed:
                return path if isinstance(keys[0], tuple) else f"{path}.{keys[0]}"
        return ""

    def _copy(self, value: Any, path: str) -> Any:
        if isinstance(value, SHARED):
            return value
        if id(value) not in self._copies:
            if isinstance(value, torch.nn.Module):
                raise NotDetachableError(f"{path} is a module that is elsewhere in the model")
            self._enter(value, self._copied(value, path))
        return self._copies[id(value)][1]

    def _enter(self, value: Any, copied: Any) -> None:
        self._copies.setdefault(id(value), (value, copied))

    def _copied(self, value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            copied = self._tensor(value)
            if copied.untyped_storage()._cdata == value.untyped_storage()._cdata:
                self._made.append((path, copied))
            return copied
        if isinstance(value, MethodType):
            return MethodType(value.__func__, self._copy(value.__self__, path))
        if isinstance(value, partial):
            return self._partial(value, path)
        if isinstance(value, FunctionType):
            _check_no_module(_enclosed(value), path)
            return value
        if isinstance(value, weakref.ref):
            _check_no_module([value()], path)
            return value
        if isinstance(value, (dict, list, set, frozenset, tuple)):
            return self._container(value, path)
        return self._instance(value, path)

    def _partial(self, value: partial[Any], path: str) -> partial[Any]:
        own = value.func, *value.args, *value.keywords.values()
        found = [self._copy(each, f"{path}()") for each in own]
        if all(map(is_, found, own)):
            return value
        function, *given = found
        count = len(value.args)
        return partial(function, *given[:count], **dict(zip(value.keywords, given[count:], strict=True)))

    def _container(self, value: Any, path: str) -> Any:
        kind = type(value)
        if isinstance(value, (tuple, frozenset)):
            base: Any = tuple if isinstance(value, tuple) else frozenset
            return base.__new__(kind, [self._copy(each, f"{path}[]") for each in value])
        if kind not in (dict, OrderedDict, defaultdict, list, set):
            raise NotDetachableError(f"{path} is a {kind.__name__}, which there is no copy of")
        copied = value.copy()
        self._enter(value, copied)
        if isinstance(copied, dict):
            for key, each in value.copy().items():
                copied[key] = self._copy(each, f"{path}[{key!r}]")
        else:
            found = [self._copy(each, f"{path}[]") for each in value.copy()]
            copied.clear()
            copied.extend(found) if isinstance(copied, list) else copied.update(found)
        self._made.append((path, copied))
        return copied

    def _instance(self, value: Any, path: str) -> Any:
        kind = type(value)
        slots = [name for name in _slots(kind) if hasattr(value, name)]
        own = dict(getattr(value, "__dict__", {}))
        if isinstance(value, ODD):
            raise NotDetachableError(f"{path} is a {kind.__name__}, which there is no copy of")
        if kind.__module__.partition(".")[0] in SHARED_FROM or not (slots or hasattr(value, "__dict__")):
            return value
        if hasattr(kind, "__del__"):
            raise NotDetachableError(f"{path} is a {kind.__name__}, which there is no copy of")
        try:
            copied = object.__new__(kind)
        except TypeError as error:
            raise NotDetachableError(f"{path} is a {kind.__name__}, which there is no copy of") from error
        self._enter(value, copied)
        for name in slots:
            object.__setattr__(copied, name, self._copy(getattr(value, name), f"{path}.{name}"))
        if own:
            copied.__dict__.update({name: self._copy(each, f"{path}.{name}") for name, each in own.items()})
        self._made.append((path, copied))
        return copied


def _slots(kind: type) -> list[str]:
    found: list[str] = []
    for each in kind.__mro__:
        names = vars(each).get("__slots__", ())
        found += (names,) if isinstance(names, str) else names
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def _content(value: Any) -> Content:
    """What an object refers to, by name, key or number."""
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, list):
        return dict(enumerate(value))
    if isinstance(value, set):
        return {(id(each),): each for each in value}
    slots = {name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)}
    return {**slots, **getattr(value, "__dict__", {})}


def _enclosed(function: FunctionType) -> Iterator[Any]:
    """What a function refers to of the functions that it was made in."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):
            yield cell.cell_contents


def _check_no_module(values: Iterable[Any], path: str) -> None:
    if any(isinstance(each, torch.nn.Module) for each in values):
        raise NotDetachableError(f"{path} refers to a module, and there is no copy of it")
