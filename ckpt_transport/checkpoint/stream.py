"""Takes a version in tensor by tensor, as a framework gathers it: none is kept, and the pool grows as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ckpt_transport.checkpoint.arrangement import Arrangement
from ckpt_transport.checkpoint.dtensors import is_dtensor
from ckpt_transport.checkpoint.given_tensor import GivenTensor
from ckpt_transport.checkpoint.mapping import MappedTensors
from ckpt_transport.checkpoint.placing import place
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import Buffer
from ckpt_transport.planning.values.alignment import align_up
from ckpt_transport.planning.values.manifest import Conversion, PlacedTensor, gathered

FIRST_NBYTES, MOST_NBYTES = 16 << 20, 2 << 30
"""Size of the first pool, and of the largest, unless a tensor is larger: each is as large as all before it, so that
pools are few and less than half is left empty. The next version whose tensors come in the same order and sizes takes
the same pools."""


class TensorStream:
    """Copies tensors into pools as they come.

    Args:
        give: what becomes of a name and its value.
        take: makes a pool of so many bytes.
        copy: brings one tensor into a pool.

    Attributes:
        pools: those that were taken, in their order.
        placed: the tensors, for a manifest.
    """

    def __init__(
        self,
        *,
        give: Callable[[Any, Any], MappedTensors],
        take: Callable[[int], Buffer],
        copy: Callable[[GivenTensor, Arrangement, Buffer], None],
    ) -> None:
        self.pools: list[Buffer] = []
        self.placed: list[PlacedTensor] = []
        self._give, self._take, self._bring = give, take, copy
        self._names: dict[str, bool] = {}
        """Whether a tensor is declared to be the same elsewhere, by name."""
        self._plain: list[str] = []
        self._sharded = False
        self._conversions: list[Conversion] = []
        self._end = self._nbytes = 0

    def read(self, tensors: object) -> None:
        """Copy all pairs of names and tensors, each before the next one is asked for.

        Raises:
            CheckpointError: there is something else than a pair, a name comes twice, or as
                :func:`~ckpt_transport.checkpoint.parts.given`; and whatever the iterator raises.
        """
        assert isinstance(tensors, Iterable)
        for pair in tensors:
            self._take_in(*_name_and_value(len(self._names), pair))
            del pair

    def _take_in(self, name: Any, value: Any) -> None:
        parts, conversions = self._give(name, value)
        self._conversions += conversions
        self._sharded = self._sharded or is_dtensor(value)
        plain = isinstance(value, torch.Tensor) and not is_dtensor(value)
        names = dict.fromkeys(part.spec.name for part in parts)
        for each in names:
            if each in self._names:
                raise CheckpointError(f"tensor '{each}' comes twice; give each name once")
            self._names[each] = False
            if plain:
                self._plain.append(each)
        for part in parts:
            self._names[part.spec.name] = part.replicated
            self._copy(part)

    @property
    def replicated(self) -> tuple[str, ...]:
        """Names of those that other sources give, too: beside DTensors plain tensors are such."""
        alike = {name for name, declared in self._names.items() if declared} | set(self._plain if self._sharded else ())
        return tuple(name for name in self._names if name in alike)

    @property
    def conversions(self) -> tuple[Conversion, ...]:
        """Which of them were made of others, and how."""
        return gathered(self._conversions)

    def _copy(self, part: GivenTensor) -> None:
        offset = self._room_for(part.nbytes)
        pool = self.pools[-1]
        placed = place([part], [offset], extent=len(self.pools) - 1)
        self._bring(part, Arrangement([part.nbytes], [offset], pool.nbytes, tuple(placed), ()), pool)
        self.placed += placed

    def _room_for(self, nbytes: int) -> int:
        """Where in the last pool so many bytes have room; a new pool is taken where they have none."""
        room = align_up(nbytes)
        if not self.pools or self._end + room > self.pools[-1].nbytes:
            size = max(FIRST_NBYTES, min(self._nbytes, MOST_NBYTES), room)
            self.pools.append(self._take(size))
            self._nbytes += size
            self._end = 0
        self._end += room
        return self._end - room


def _name_and_value(number: int, pair: object) -> tuple[Any, Any]:
    """
    Raises:
        CheckpointError: this is no pair; says which item it is.
    """
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise CheckpointError(
            f"item {number} of the tensors is of type {type(pair).__name__} and not a pair of name and tensor; give "
            "pairs, as module.named_parameters() does, or a mapping from names to tensors"
        )
    return pair[0], pair[1]
