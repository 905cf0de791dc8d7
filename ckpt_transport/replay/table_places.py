"""Where in the tables of a module's names its tensors are, so that they are found again without a walk by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        depends_on: what else decides which tensors are found.
    """

    def __init__(
        self,
        keys: Sequence[str],
        sizes: Sequence[int],
        places: Sequence[int],
        empty: Sequence[int],
        depends_on: object,
    ) -> None:
        self._keys, self._sizes, self._depends_on = keys, sizes, depends_on
        self._places, self._empty = places, empty

    @classmethod
    def of(cls, bound: ModuleTables, tensors: Mapping[str, torch.Tensor], depends_on: object) -> Self | None:
        """Those of these tensors, by their names in the module.

        None where a name or a tensor is not in its tables, or a module has two names: tables do not say which.
        """
        inside = sum(isinstance(each, torch.nn.Module) for each in bound.objects)
        if len(bound.modules) != 1 + inside:
            return None
        numbers = _numbers_of_names(bound)
        places = [numbers.get(name, -1) for name in tensors]
        if -1 in places or not all(map(is_, map(bound.objects.__getitem__, places), tensors.values())):
            return None
        empty = [number for number, found in enumerate(bound.objects) if found is None]
        return cls(bound.keys, bound.sizes, places, empty, depends_on)

    def find(self, bound: ModuleTables, depends_on: object) -> list[object] | None:
        """What is there now, where the same names are in the same tables; None where a walk may find something else.

        Of which class and in which form that is, is to be looked at.
        """
        if self._depends_on != depends_on or self._sizes != bound.sizes or self._keys != bound.keys:
            return None
        at = bound.objects.__getitem__
        return list(map(at, self._places)) if all(map(is_, map(at, self._empty), repeat(None))) else None


def _numbers_of_names(bound: ModuleTables) -> dict[str, int]:
    """The number of each name's key, of a module in which each is at one place."""
    starts: dict[object, str] = {bound.modules[0]: ""}
    for each in bound.modules:
        starts |= {inside: f"{starts[each]}{key}." for key, inside in each._modules.items()}
    by_table = zip(cycle(bound.modules), bound.tables, strict=False)
    names = (starts[each] + key for each, table in by_table for key in table)
    return {name: number for number, name in enumerate(names)}
