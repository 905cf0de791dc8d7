"""One row in host memory: what is divided by is one number for all of its elements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckpt_transport.deltas.carried_blocks import SomeBlocks
from ckpt_transport.deltas.copied_rows import Rows
from ckpt_transport.deltas.host_elements import HostElements


class HostRow(NamedTuple):
    """A row of :class:`~ckpt_transport.deltas.copied_rows.Rows`, without the dimensions that have one step.

    Attributes:
        begin, target, write, run: as there.
        counts, reads, writes: along each dimension, that of the largest distance first.
    """

    begin: int
    target: int
    write: int
    run: int
    counts: list[int]
    reads: list[int]
    writes: list[int]

    @classmethod
    def of(cls, rows: Rows, number: int) -> HostRow:
        several = rows.counts[number] > 1
        begin, target, write, run = (int(column[number]) for column in (rows.begin, rows.target, rows.write, rows.run))
        counts, reads, writes = (column[number][several].tolist() for column in (rows.counts, rows.reads, rows.writes))
        return cls(begin, target, write, run, counts, reads, writes)

    def is_even(self, origin: int, unit: int) -> bool:
        """Whether its distances are whole elements, of a range that begins at ``origin``."""
        distances = (self.run, origin - self.begin, *self.reads, *self.writes)
        return not any(each % unit for each in distances) and min(self.writes) >= 0

    def strided(self, origin: int, some: SomeBlocks, unit: int, base: int) -> Iterator[HostElements]:
        """Where those elements go that lie in one of its runs.

        Args:
            origin: the position that places are counted from.
            some: elements between the begin of the row and its end.
            unit: bytes of an element.
            base: the address of the target.
        """
        within: npt.NDArray[np.integer[Any]] = some.places.astype(np.int64)
        within += (origin - self.begin) // unit
        if int(within[-1]) < 1 << 32:
            within = within.astype(np.uint32)
        found = np.ones(len(within), np.bool_)
        to = np.zeros(len(within), np.int64)
        for count, read, write in zip(self.counts, self.reads, self.writes, strict=True):
            stride = within.dtype.type(read // unit)
            step = within // stride
            found &= step < count
            within -= step * stride
            to += step * np.int64(write // unit)
        found &= within < self.run // unit
        to += within
        values = some.values
        if not found.all():
            which = np.flatnonzero(found)
            to, values = to.take(which), values.take(which)
        if len(to):
            narrow = int(to.max()) < 1 << 31
            yield HostElements(base + self.write, unit, to.astype(np.int32) if narrow else to, values)
