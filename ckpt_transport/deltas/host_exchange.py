"""Elements in host memory are exchanged with what lies at their places, by all cores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckpt_transport.deltas.all_cores import by_all_cores
from ckpt_transport.deltas.host_elements import HostElements, Places, Units

CHUNK_ELEMENTS = 1 << 16
"""So many are kept aside at a time, and fewer where they lie far apart."""
CHUNK_BYTES = 1 << 20
"""So much memory is read for them, which is still in a core's cache when it is written."""
LINE_BYTES = 64
"""As much is read for one element that lies alone."""


class Changes(NamedTuple):
    """Elements in host memory that have changed.

    Attributes:
        addresses: of the first byte of each.
        old, new: what was there, and what is.
    """

    addresses: npt.NDArray[np.int64]
    old: Units
    new: Units


class HostExchange:
    """Exchanges the same elements as often as asked. After the first time their values are the undo log.

    Args:
        parts: no element is in two of them, or twice in one.

    Attributes:
        nbytes: of places and values.
        count: how many elements there are.
    """

    def __init__(self, parts: Sequence[HostElements]) -> None:
        self._parts = [some for part in parts for some in _chunks(part)]
        self._memory = [_memory_of(part) for part in self._parts]
        self.nbytes = sum(part.places.nbytes + part.values.nbytes for part in self._parts)
        self.count = sum(part.values.size for part in self._parts)

    def changes(self) -> Iterator[Changes]:
        """What the last exchange has changed, in parts. It holds as long as nobody else writes there."""
        for part, memory in zip(self._parts, self._memory, strict=True):
            yield Changes(part.addresses, part.values, memory[part.places])

    def exchange(self) -> None:
        """All is done when this returns; an interrupt is not kept away."""
        by_all_cores(self._exchange_part, range(len(self._parts)))

    def _exchange_part(self, number: int) -> None:
        part = self._parts[number]
        _exchanged(self._memory[number], part.places, part.values)


def _exchanged(memory: Units, places: Places, values: Units) -> None:
    at = places.astype(np.intp, copy=False)
    kept = memory[at]
    memory[at] = values
    values[:] = kept


def _chunks(part: HostElements) -> Iterator[HostElements]:
    if not part.values.size:
        return
    apart = abs(int(part.places[-1]) - int(part.places[0])) * part.step // part.values.size
    elements = min(CHUNK_ELEMENTS, CHUNK_BYTES // max(min(apart, LINE_BYTES), 1))
    for first in range(0, part.values.size, elements):
        some = slice(first, first + elements)
        yield part._replace(places=part.places[some], values=part.values[some])


class _Memory:
    """Memory as NumPy is told of it."""

    def __init__(self, interface: dict[str, object]) -> None:
        self.__array_interface__ = interface


def _memory_of(part: HostElements) -> npt.NDArray[np.integer[Any]]:
    """All memory from the start of a part on, an element at each place; only those that are indexed are touched."""
    described = {
        "version": 3,
        "data": (part.start, False),
        "shape": (int(part.places.max()) + 1,),
        "strides": (part.step,),
        "typestr": part.values.dtype.str,
    }
    return np.asarray(_Memory(described))
