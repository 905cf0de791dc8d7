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
SINGLE_COLUMNS = 6
"""Of rows, before those that have dimensions."""


class Located(NamedTuple):
    """Where some of the elements are that were asked about.

    Attributes:
        addresses: of the first byte of each.
        which: numbers of the elements, in the order in which they were given. One may be at several addresses.
    """

    addresses: torch.Tensor
    which: torch.Tensor


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
        count, dimensions = rows.counts.shape
        self._table = put(np.concatenate([np.ravel(column.T) for column in rows]), device)
        single, several = self._table[: SINGLE_COLUMNS * count], self._table[SINGLE_COLUMNS * count :]
        self._columns = [*single.view(SINGLE_COLUMNS, count), *several.view(3, dimensions, count).transpose(1, 2)]

    def near(self, lows: Numbers, highs: Numbers) -> NearRows:
        """The rows that hold something between a low position and a high one, of several."""
        first = np.searchsorted(self.rows.high, lows, side="right")
        last = np.maximum(np.searchsorted(self.rows.low, highs, side="left"), first)
        most = np.maximum.reduceat(np.append(self._depth, 0), np.stack([first, last], axis=1).ravel())[::2]
        count, dimensions = self.rows.counts.shape
        low, high = self.rows.low[np.minimum(first, count - 1)], self.rows.high[np.maximum(last, 1) - 1]
        return NearRows(self._table, count, dimensions, first, last, low, high, np.where(first < last, most, 0))

    def locate(
        self, low: int, high: int, positions: torch.Tensor, start: int, unit: int, bases: torch.Tensor
    ) -> Located | None:
        """The elements that one of the rows holds; None where none can.

        Args:
            low, high: between which positions the elements lie.
            positions, bases: as those of :meth:`ElementMap.locate`.
            start: the position from which these are counted.
            unit: bytes of an element.
        """
        first = int(np.searchsorted(self.rows.high, low, side="right"))
        last = int(np.searchsorted(self.rows.low, high, side="left"))
        if first >= last:
            return None
        lows, highs, begins, target, write, run, counts, reads, writes = (
            column[first:last] for column in self._columns
        )
        row = _holding(lows - start, positions)
        found = positions <= (highs - (start + unit))[row]
        found &= positions >= lows[0] - start
        depth = int(self._depth[first:last].max())
        if not depth:
            which = found.nonzero().squeeze(1)
            return Located((positions + (bases[target] + write - begins + start)[row])[which], which)
        within = positions - (begins - start)[row]
        addresses = (bases[target] + write)[row]
        dimensions = counts.shape[1]
        for dimension in range(dimensions - depth, dimensions):
            stride = reads[:, dimension][row]
            step = within // stride
            found &= step < counts[:, dimension][row]
            addresses += step * writes[:, dimension][row]
            within -= step * stride
        found &= within <= (run - unit)[row]
        addresses += within
        which = found.nonzero().squeeze(1)
        return Located(addresses[which], which)

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
            yield from self._by_elements(origin, end, some, unit, bases)
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
                yield from self._by_elements(origin, end, part, unit, bases)

    def _by_elements(
        self, origin: int, end: int, some: SomeBlocks, unit: int, bases: Numbers
    ) -> Iterator[HostElements]:
        positions = some.places.astype(np.int64) * unit
        low, high = origin + int(positions[0]), min(origin + int(positions[-1]) + unit, end)
        found = self.locate(low, high, torch.from_numpy(positions), origin, unit, torch.from_numpy(bases))
        if found is not None and len(found.which):
            yield HostElements.at(found.addresses.numpy(), some.values.take(found.which.numpy()))


def _before(places: Places, place: int) -> int:
    """How many places are before one."""
    if place <= 0:
        return 0
    return len(places) if place > int(places[-1]) else int(places.searchsorted(np.int32(place)))


def _holding(lows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """For each position the last row that begins at or before it; the first row for what comes before all."""
    bounds = torch.searchsorted(positions, lows[1:])
    times = torch.diff(bounds, prepend=bounds.new_zeros(1), append=bounds.new_full((1,), len(positions)))
    if times.is_cpu:  # torch has several cores repeat, however few there are
        return torch.from_numpy(np.repeat(np.arange(len(times)), times.numpy()))
    return torch.repeat_interleave(times, output_size=len(positions))
