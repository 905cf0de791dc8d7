"""Where in the tables of a module's names its tensors are, so that they are found again without a walk by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, repeat
from operator import is_
from typing import Self

import torch

from ckpt_transport.replay.module_tables import ModuleTables


class TablePlaces:
    """Where tensors are in the tables of their module. It keeps none of them.

    Args:
        keys: all names that tables have, in their order.
        sizes: how many each table has.
        places: for each tensor the number of its key.
        empty: the numbers of keys that are bound to nothing.
        wiring: which module each name of one is bound to, where a module has several; None where tables alone say it.
        depends_on: what else decides which tensors are found.
    """

    def __init__(
        self,
        keys: Sequence[str],
        sizes: Sequence[int],
        places: Sequence[int],
        empty: Sequence[int],
        wiring: Sequence[int] | None,
        depends_on: object,
    ) -> None:
        self._keys, self._sizes, self._depends_on = keys, sizes, depends_on
        self._places, self._empty, self._wiring = places, empty, wiring

    @classmethod
    def of(cls, bound: ModuleTables, tensors: Mapping[str, torch.Tensor], depends_on: object) -> Self | None:
        """Those of these tensors, by their names in the module.

        None where a name or a tensor is not in its tables.
        """
        numbers = _numbers_of_names(bound)
        places = [numbers.get(name, -1) for name in tensors]
        if -1 in places or not all(map(is_, map(bound.objects.__getitem__, places), tensors.values())):
            return None
        empty = [number for number, found in enumerate(bound.objects) if found is None]
        inside = sum(isinstance(each, torch.nn.Module) for each in bound.objects)
        wiring = None if len(bound.modules) == 1 + inside else bound.wiring
        return cls(bound.keys, bound.sizes, places, empty, wiring, depends_on)

    def find(self, bound: ModuleTables, depends_on: object) -> list[object] | None:
        """What is there now, where the same names are in the same tables; None where a walk may find something else.

        Of which class and in which form that is, is to be looked at.
        """
        if self._depends_on != depends_on or self._sizes != bound.sizes or self._keys != bound.keys:
            return None
        if self._wiring is not None and self._wiring != bound.wiring:
            return None
        at = bound.objects.__getitem__
        return list(map(at, self._places)) if all(map(is_, map(at, self._empty), repeat(None))) else None


def _numbers_of_names(bound: ModuleTables) -> dict[str, int]:
    """The number of each name's key. What is in a module that has several names has as many."""
    starts: defaultdict[object, list[str]] = defaultdict(list)
    for start, each in _named("", bound.modules[0]):
        starts[each].append(start)
    owners = zip(cycle(bound.modules), bound.tables, strict=False)
    keys = ((owner, key) for owner, table in owners for key in table)
    return {start + key: number for number, (owner, key) in enumerate(keys) for start in starts[owner]}


def _named(start: str, module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """A module and all in it, by each of their names."""
    yield start, module
    for key, inside in module._modules.items():
        if inside is not None:
            yield from _named(f"{start}{key}.", inside)
