"""Takes a version in tensor by tensor, as a framework gathers it: none is kept, and the pool grows as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ckpt_transport.checkpoint.arrangement import Arrangement
from ckpt_transport.checkpoint.shards import GivenTensor, given, is_dtensor, place
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import Buffer
from ckpt_transport.planning.values.alignment import align_up
from ckpt_transport.planning.values.manifest import PlacedTensor

FIRST_NBYTES, MOST_NBYTES = 16 << 20, 2 << 30
"""Size of the first pool, and of the largest, unless a tensor is larger: each is as large as all before it, so that
pools are few and less than half is left empty. The next version whose tensors come in the same order and sizes takes
the same pools."""


class TensorStream:
    """Copies tensors into pools as they come.

    Args:
        replicated: plain tensors are the same on every rank that gives them.
        take: makes a pool of so many bytes.
        copy: brings one tensor into a pool.

    Attributes:
        pools: those that were taken, in their order.
        placed: the tensors, for a manifest.
    """

    def __init__(
        self,
        *,
        replicated: bool,
        take: Callable[[int], Buffer],
        copy: Callable[[GivenTensor, Arrangement, Buffer], None],
    ) -> None:
        self.pools: list[Buffer] = []
        self.placed: list[PlacedTensor] = []
        self._given_replicated, self._take, self._bring = replicated, take, copy
        self._names: dict[str, bool] = {}
        """Whether a tensor is declared to be the same elsewhere, by name."""
        self._plain: list[str] = []
        self._sharded = False
        self._end = self._nbytes = 0

    def read(self, tensors: object) -> None:
        """Copy all pairs of names and tensors, each before the next one is asked for.

        Raises:
            CheckpointError: there is something else than a pair, a name comes twice, or as
                :func:`~ckpt_transport.checkpoint.shards.given`; and whatever the iterator raises.
        """
        assert isinstance(tensors, Iterable)
        for pair in tensors:
            self._take_in(*_name_and_value(len(self._names), pair))
            del pair

    def _take_in(self, name: Any, value: Any) -> None:
        if name in self._names:
            raise CheckpointError(f"tensor '{name}' comes twice; give each name once")
        parts = given({name: value}, replicated=self._given_replicated)
        self._names[name] = any(part.replicated for part in parts)
        if is_dtensor(value):
            self._sharded = True
        else:
            self._plain += [part.spec.name for part in parts if part.tensor is value]
        for part in parts:
            self._copy(part)

    @property
    def replicated(self) -> tuple[str, ...]:
        """Names of those that other sources give, too: beside DTensors plain tensors are such."""
        alike = {name for name, declared in self._names.items() if declared} | set(self._plain if self._sharded else ())
        return tuple(name for name in self._names if name in alike)

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
