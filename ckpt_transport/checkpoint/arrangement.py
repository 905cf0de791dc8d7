"""An arrangement says where in a pool the tensors of a version lie; versions of a training run have the same one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ckpt_transport.checkpoint.given_tensor import GivenTensor, replicated_names
from ckpt_transport.checkpoint.placing import lay_out_parts, place
from ckpt_transport.planning.values.manifest import PlacedTensor


class Arrangement(NamedTuple):
    """Where tensors lie in a pool.

    Attributes:
        sizes, offsets: of each tensor, in bytes.
        nbytes: of the pool.
        placed: the tensors, for a manifest.
        replicated: names of those that other sources give, too.
    """

    sizes: Sequence[int]
    offsets: Sequence[int]
    nbytes: int
    placed: tuple[PlacedTensor, ...]
    replicated: tuple[str, ...]


class Arrangements:
    """Makes arrangements, and keeps the last one for the next version that gives the same tensors."""

    def __init__(self) -> None:
        self._described: list[object] = []
        self._last: Arrangement | None = None

    def of(self, parts: Sequence[GivenTensor]) -> Arrangement:
        """Arrange tensors that are given in this order."""
        described: list[object] = [(part.spec, part.ranges, part.replicated) for part in parts]
        if self._last is None or described != self._described:
            sizes = [part.nbytes for part in parts]
            offsets, nbytes = lay_out_parts(parts)
            self._last = Arrangement(sizes, offsets, nbytes, tuple(place(parts, offsets)), replicated_names(parts))
            self._described = described
        return self._last
