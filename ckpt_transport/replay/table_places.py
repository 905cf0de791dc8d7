"""Where in the tables of a module's names its tensors are, so that they are found again without a walk by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Self

import torch

Tables = Sequence[Mapping[str, object]]
"""The parameters, buffers and modules of each module: its names, and what they are bound to."""
TABLES = 3
"""So many has a module."""


def tables_of(modules: Sequence[torch.nn.Module]) -> Tables:
    """Those of all of these."""
    return [table for each in modules for table in (each._parameters, each._buffers, each._modules)]


def objects_in(tables: Tables) -> list[object]:
    """What names are bound to, in their order."""
    return list(chain.from_iterable(table.values() for table in tables))


class TablePlaces:
    """Where tensors are in the tables of their module. It keeps none of them.

    Args:
        names: of the tensors.
        keys: all names that tables have, in their order.
        sizes: how many each table has.
        places: for each tensor the number of its key.
        empty: the numbers of keys that are bound to nothing.
        kinds: the classes of the tensors.
        depends_on: what else decides which tensors are found.
    """

    def __init__(
        self,
        names: Sequence[str],
        keys: Sequence[str],
        sizes: Sequence[int],
        places: Sequence[int],
        empty: Sequence[int],
        kinds: frozenset[type],
        depends_on: object,
    ) -> None:
        self._names, self._keys, self._sizes, self._depends_on = names, keys, sizes, depends_on
        self._places, self._empty, self._kinds = places, empty, kinds

    @classmethod
    def of(
        cls, module: torch.nn.Module, tables: Tables, tensors: Mapping[str, torch.Tensor], depends_on: object
    ) -> Self | None:
        """Those of these tensors, by their names in ``module``.

        None where a name or a tensor is not in its tables, or a module has two names: tables do not say which.
        """
        numbers: dict[str, int] = {}
        for prefix, each in module.named_modules():
            start = f"{prefix}." if prefix else ""
            for table in (each._parameters, each._buffers, each._modules):
                for key in table:
                    numbers[start + key] = len(numbers)
        objects = objects_in(tables)
        own = sum(isinstance(each, torch.nn.Module) for each in objects)
        if len(numbers) != len(objects) or len(tables) != TABLES * (1 + own):
            return None
        places = [numbers.get(name, -1) for name in tensors]
        if -1 in places or any(objects[at] is not tensor for at, tensor in zip(places, tensors.values(), strict=True)):
            return None
        empty = [number for number, found in enumerate(objects) if found is None]
        keys, sizes = list(chain.from_iterable(tables)), list(map(len, tables))
        return cls(tuple(tensors), keys, sizes, places, empty, frozenset(map(type, tensors.values())), depends_on)

    def find(self, tables: Tables, objects: Sequence[object], depends_on: object) -> dict[str, torch.Tensor] | None:
        """What is there now, where the same names are in the same tables; None where a walk may find something else.

        In which form they are is to be looked at.
        """
        if self._depends_on != depends_on or self._sizes != list(map(len, tables)):
            return None
        if self._keys != list(chain.from_iterable(tables)) or any(objects[at] is not None for at in self._empty):
            return None
        found: list[Any] = list(map(objects.__getitem__, self._places))
        return dict(zip(self._names, found, strict=True)) if self._kinds.issuperset(map(type, found)) else None
