"""Rows that lie apart from each other, in which elements are looked up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from ckpt_transport.deltas.carried_blocks import Places, SomeBlocks
from ckpt_transport.deltas.copied_rows import Numbers, Rows
from ckpt_transport.deltas.host_elements import HostElements
from ckpt_transport.deltas.host_row import HostRow
from ckpt_transport.memory.table import put

ELEMENTS_OF_A_ROW = 512
"""Where a row has so many on the host, to look at rows one by one is sooner than at elements."""
FEW_ROWS = 4
"""So many are always looked at one by one."""


class NearRows(NamedTuple):
    """Which rows of a layer each of some ranges may meet; in the terms of the kernels that look elements up.

    Attributes:
        table: the columns of the layer, one after the other, on the device.
        rows, dimensions: how many there are.
        first, last: of each range, the first row that it may meet, and the one behind the last.
        low, high: the positions between which these rows are; of no meaning where there are none.
        depth: the most dimensions that one of these needs.
    """

    table: torch.Tensor
    rows: int
    dimensions: int
    first: Numbers
    last: Numbers
    low: Numbers
    high: Numbers
    depth: Numbers


class Layer:
    """Rows that lie apart from each other, where they are looked up.

    Attributes:
        rows: these.
    """

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self.rows = rows
        self._depth = (rows.counts > 1).sum(axis=1)
        self._table = put(np.concatenate([np.ravel(column.T) for column in rows]), device)

    def near(self, lows: Numbers, highs: Numbers) -> NearRows:
        """The rows that hold something between a low position and a high one, of several."""
        first = np.searchsorted(self.rows.high, lows, side="right")
        last = np.maximum(np.searchsorted(self.rows.low, highs, side="left"), first)
        most = np.maximum.reduceat(np.append(self._depth, 0), np.stack([first, last], axis=1).ravel())[::2]
        count, dimensions = self.rows.counts.shape
        low, high = self.rows.low[np.minimum(first, count - 1)], self.rows.high[np.maximum(last, 1) - 1]
        return NearRows(self._table, count, dimensions, first, last, low, high, np.where(first < last, most, 0))

    def locate_on_host(
        self, offset: int, end: int, some: SomeBlocks, unit: int, bases: Numbers
    ) -> Iterator[HostElements]:
        """The elements that its rows hold, in parts; in the order of their positions.

        Args:
            offset: where the range begins.
            end: where the extent does.
            some: elements of the range, one at least.
            unit: bytes of an element.
            bases: the address of each served tensor.
        """
        origin = offset + some.first * unit
        low, high = origin + int(some.places[0]) * unit, min(origin + (int(some.places[-1]) + 1) * unit, end)
        first = int(np.searchsorted(self.rows.high, low, side="right"))
        last = int(np.searchsorted(self.rows.low, high, side="left"))
        if (last - first) * ELEMENTS_OF_A_ROW > len(some.places) + FEW_ROWS * ELEMENTS_OF_A_ROW:
            yield from _looked_up(self.rows.take(slice(first, last)), origin, some, unit, bases)
            return
        for number in range(first, last):
            begin, until = (
                -(-(int(self.rows.low[number]) - origin) // unit),
                (int(self.rows.high[number]) - origin) // unit,
            )
            these = slice(_before(some.places, begin), _before(some.places, until))
            if these.start >= these.stop:
                continue
            part = SomeBlocks(some.first, some.places[these], some.values[these])
            row = HostRow.of(self.rows, number)
            if not row.counts:
                start = int(bases[row.target]) + row.write + origin - row.begin
                yield HostElements(start, unit, part.places, part.values)
            elif row.is_even(origin, unit):
                yield from row.strided(origin, part, unit, int(bases[row.target]))
            else:
                yield from _looked_up(self.rows.take(slice(number, number + 1)), origin, part, unit, bases)


def _before(places: Places, place: int) -> int:
    """How many places are before one."""
    if place <= 0:
        return 0
    return len(places) if place > int(places[-1]) else int(places.searchsorted(np.int32(place)))


def _looked_up(rows: Rows, origin: int, some: SomeBlocks, unit: int, bases: Numbers) -> Iterator[HostElements]:
    """The elements that rows hold, each of which is looked up; in the terms of :meth:`Layer.locate_on_host`."""
    positions = some.places.astype(np.int64) * unit + origin
    row = _holding(rows.low, positions)
    found = positions >= rows.low[0]
    found &= positions <= (rows.high - unit)[row]
    within = positions - rows.begin[row]
    addresses = (bases[rows.target] + rows.write)[row]
    for dimension in np.flatnonzero((rows.counts > 1).any(axis=0)):
        stride = rows.reads[:, dimension][row]
        step = within // stride
        found &= step < rows.counts[:, dimension][row]
        addresses += step * rows.writes[:, dimension][row]
        within -= step * stride
    found &= within <= (rows.run - unit)[row]
    addresses += within
    which = np.flatnonzero(found)
    if len(which):
        yield HostElements.at(addresses.take(which), some.values.take(which))


def _holding(lows: Numbers, positions: Numbers) -> Numbers:
    """For each position the last row that begins at or before it; the first row for what comes before all."""
    bounds = np.searchsorted(positions, lows[1:])
    return np.repeat(np.arange(len(lows)), np.diff(bounds, prepend=0, append=len(positions)))
