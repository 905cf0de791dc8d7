"""What the names of a module are bound to, of all that is in it, found and compared by passes in C."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, compress, islice
from operator import attrgetter, is_, methodcaller
from typing import Any

import torch

Table = Mapping[str, object]
"""The parameters, the buffers, or the modules of a module: its names, and what they are bound to."""

_parameters, _buffers, _inside = map(attrgetter, ("_parameters", "_buffers", "_modules"))
_values = methodcaller("values")

identity = object.__hash__
"""Differs between objects that live at the same time, as ``id``, of whose calls Python tells each audit hook."""


class ModuleTables:
    """What the names of a module, and of each in it, are bound to at one time. It keeps all of that.

    Attributes:
        modules: the module and all in it, each once, by how deep they are.
        tables: the parameters of each of these, then the buffers of each, then what is in each.
        sizes: how many names each table has.
        objects: what all these names are bound to, in their order.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        found: dict[Any, None] = {module: None}
        deeper = [module]
        while deeper:
            known, inside = len(found), filter(None, map(_inside, deeper))
            found |= dict.fromkeys(chain.from_iterable(map(_values, inside)))
            found.pop(None, None)
            deeper = list(islice(found, known, None))
        self.modules: Sequence[torch.nn.Module] = list(found)
        self.tables = _tables_of(self.modules)
        self.sizes = list(map(len, self.tables))
        self.objects = list(_bound_in(self.tables, self.sizes))

    @property
    def keys(self) -> list[str]:
        """All names, in their order."""
        return list(chain.from_iterable(compress(self.tables, self.sizes)))

    @property
    def wiring(self) -> list[int]:
        """The number of the module that each name of a module is bound to; -1 for one that is bound to nothing."""
        numbers: dict[object, int] = {each: number for number, each in enumerate(self.modules)}
        inside = self.objects[sum(self.sizes[: -len(self.modules)]) :]
        return [numbers.get(each, -1) for each in inside]

    def stay(self) -> bool:
        """Whether as many names are bound to the same objects now."""
        tables = _tables_of(self.modules)
        sizes = list(map(len, tables))
        return sizes == self.sizes and all(map(is_, _bound_in(tables, sizes), self.objects))


def _tables_of(modules: Sequence[torch.nn.Module]) -> list[Table]:
    return [*map(_parameters, modules), *map(_buffers, modules), *map(_inside, modules)]


def _bound_in(tables: Sequence[Table], sizes: Sequence[int]) -> Iterable[object]:
    """What names of these are bound to; most tables are empty."""
    return chain.from_iterable(map(_values, compress(tables, sizes)))
