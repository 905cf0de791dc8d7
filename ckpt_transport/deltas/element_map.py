"""Finds where elements of a version are in what an engine serves, from their positions in the version's extents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.deltas.carriers import DeltaRange
from ckpt_transport.errors import DeltaRefusedError
from ckpt_transport.memory import StridedBytes
from ckpt_transport.planning import Carrier, PlacedTensor, TensorSpec

Numbers = npt.NDArray[np.int64]
FAR = 1 << 62
"""A stride along which there is one step only."""
MOST_REPEATED = 1024
"""One element is not copied to more places than this."""


class Located(NamedTuple):
    """Where some of the elements are that were asked about.

    Attributes:
        addresses: of the first byte of each.
        which: numbers of the elements, in the order in which they were given. One may be at several addresses.
    """

    addresses: torch.Tensor
    which: torch.Tensor


class ElementMap:
    """Knows for each byte of a version's extents to which bytes of an engine's tensors it goes.

    It is compiled to *rows*, one for each copy of a placed tensor. Rows are looked up by the position of an element, so
    those of one layer lie apart from each other; what is read twice, or interleaved, takes another layer.

    Args:
        placed: the version's tensors, and where they lie.
        specs, copies: see :class:`~ckpt_transport.engine.ServedElements`.
        device: where positions are given and addresses are wanted.

    Raises:
        DeltaRefusedError: a tensor is not one of ``specs``, or is copied in a way in which elements cannot be followed.
    """

    def __init__(
        self, placed: Sequence[PlacedTensor], specs: Sequence[TensorSpec], copies: StridedBytes, device: torch.device
    ) -> None:
        sizes = [0] * (1 + max((tensor.extent for tensor in placed), default=0))
        for tensor in placed:
            sizes[tensor.extent] = max(sizes[tensor.extent], tensor.offset + tensor.nbytes)
        self._starts = [0, *accumulate(sizes)]
        rows = _rows(placed, self._starts, specs, copies)
        self._layers = [_Layer(layer, device) for layer in _apart(rows)]

    def locate(self, where: Carrier | DeltaRange, positions: torch.Tensor, bases: torch.Tensor) -> Iterator[Located]:
        """Find the addresses of elements of a range, those of one layer after the other.

        Args:
            where: the range.
            positions: of each element's first byte in the extent, ascending; int64.
            bases: the address of each served tensor; int64.
        """
        if where.extent + 1 < len(self._starts):
            start, end = self._starts[where.extent : where.extent + 2]
            low, high = start + where.offset, min(start + where.offset + where.nbytes, end)
            for layer in self._layers:
                if found := layer.locate(low, high, positions, start, where.unit, bases):
                    yield found


class _Rows(NamedTuple):
    """Columns of what is copied; positions are counted through all extents.

    Attributes:
        low, high: the positions that a row is looked up by: its own, and within what is placed of the tensor.
        begin: of the first byte that is read.
        target, write: the number of the served tensor, and where in it the first byte goes.
        run: bytes that lie one behind the other.
        counts, reads, writes: runs along each dimension, and their distances; the largest distance of ``reads`` first.
    """

    low: Numbers
    high: Numbers
    begin: Numbers
    target: Numbers
    write: Numbers
    run: Numbers
    counts: Numbers
    reads: Numbers
    writes: Numbers

    def take(self, which: Numbers | npt.NDArray[np.bool_]) -> _Rows:
        return _Rows(*(column[which] for column in self))


def _rows(
    placed: Sequence[PlacedTensor], starts: Sequence[int], specs: Sequence[TensorSpec], copies: StridedBytes
) -> _Rows:
    known = {spec.name: (number, spec) for number, spec in enumerate(specs)}
    sources = []
    for tensor in placed:
        number, spec = known.get(tensor.spec.name, (-1, None))
        if spec != tensor.spec:
            raise DeltaRefusedError(f"{tensor.spec} is not a tensor of the version that is served")
        sources.append(number)
    copies = _nested(_single(_there(copies), specs), specs)
    copies = copies.take(np.argsort(copies.source, kind="stable"))
    source = np.array(sources, np.int64)
    first = np.searchsorted(copies.source, source, side="left")
    times = np.searchsorted(copies.source, source, side="right") - first
    of = np.repeat(np.arange(len(placed)), times)
    copy = np.arange(len(of)) - np.repeat(times.cumsum() - times, times) + first[of]
    at = np.array([starts[tensor.extent] + tensor.offset for tensor in placed], np.int64)[of]
    within = np.array([tensor.start for tensor in placed], np.int64)[of]
    length = np.array([tensor.nbytes for tensor in placed], np.int64)[of]
    each = copies.take(copy)
    begin = at - within + each.read
    span = each.run + ((each.counts - 1) * each.read_strides).sum(1)
    low, high = np.maximum(begin, at), np.minimum(begin + span, at + length)
    strides = np.where(each.counts > 1, each.read_strides, FAR)
    rows = _Rows(low, high, begin, each.target, each.write, each.run, each.counts, strides, each.write_strides)
    return _once(rows.take(low < high), placed, of[low < high])


def _there(copies: StridedBytes) -> StridedBytes:
    """Those copies that copy a byte, with one dimension at least."""
    copies = copies.take((copies.run > 0) & (copies.counts > 0).all(axis=1))
    one = np.ones((len(copies.run), 1), np.int64)
    counts, reads, writes = (
        np.concatenate([also, column], axis=1)
        for also, column in ((one, copies.counts), (0 * one, copies.read_strides), (0 * one, copies.write_strides))
    )
    return copies._replace(counts=counts, read_strides=reads, write_strides=writes)


def _single(copies: StridedBytes, specs: Sequence[TensorSpec]) -> StridedBytes:
    """The same copies, of which each reads every byte once: what is repeated is several copies."""
    repeated = (copies.read_strides == 0) & (copies.counts > 1)
    times = np.where(repeated, copies.counts, 1).prod(axis=1)
    if (times > MOST_REPEATED).any():
        name = specs[int(copies.source[np.argmax(times)])].name
        raise DeltaRefusedError(f"an element of {name} goes to more than {MOST_REPEATED} places")
    if not repeated.any():
        return copies
    of = np.repeat(np.arange(len(times)), times)
    step = np.arange(len(of)) - np.repeat(times.cumsum() - times, times)
    each = copies.take(of)
    write, counts = each.write.copy(), each.counts.copy()
    for dimension in range(counts.shape[1]):
        along = repeated[of, dimension]
        count = np.where(along, counts[:, dimension], 1)
        write += step % count * each.write_strides[:, dimension]
        step //= count
        counts[along, dimension] = 1
    return each._replace(write=write, counts=counts)


def _nested(copies: StridedBytes, specs: Sequence[TensorSpec]) -> StridedBytes:
    """The same copies with the dimension of the largest distance first, of which each step holds all that follow."""
    strides = np.where(copies.counts > 1, copies.read_strides, FAR)
    order = np.argsort(-strides, axis=1, kind="stable")
    counts, reads, writes = (
        np.take_along_axis(column, order, axis=1)
        for column in (copies.counts, copies.read_strides, copies.write_strides)
    )
    reads = np.where(counts > 1, reads, 0)
    span = copies.run.copy()
    for dimension in reversed(range(counts.shape[1])):
        several = counts[:, dimension] > 1
        overlapping = several & (reads[:, dimension] < span)
        if overlapping.any():
            name = specs[int(copies.source[np.argmax(overlapping)])].name
            raise DeltaRefusedError(f"the loader reads {name} in a way in which its elements cannot be followed")
        span += (counts[:, dimension] - 1) * reads[:, dimension]
    return copies._replace(counts=counts, read_strides=reads, write_strides=writes)


def _once(rows: _Rows, placed: Sequence[PlacedTensor], of: Numbers) -> _Rows:
    """Of equal rows one: tied names that lie at one place.

    Raises:
        DeltaRefusedError: rows of different places go to the same one, so that an element would be exchanged twice.
    """
    if not len(rows.low):
        return rows
    whole = np.column_stack([column.reshape(len(rows.low), -1) for column in rows])
    _, first = np.unique(whole, axis=0, return_index=True)
    kept = rows.take(np.sort(first))
    of = of[np.sort(first)]
    goes = np.column_stack([kept.target, kept.write, kept.run, kept.counts, kept.writes])
    _, first, times = np.unique(goes, axis=0, return_index=True, return_counts=True)
    if (times > 1).any():
        again = np.flatnonzero((goes == goes[first[np.argmax(times)]]).all(axis=1))
        names = sorted({placed[of[number]].spec.name for number in again})
        if len(names) > 1:
            raise DeltaRefusedError(f"{' and '.join(names)} have one memory in the engine, and two in the version")
    return kept


def _apart(rows: _Rows) -> Iterator[_Rows]:
    """The rows in layers, each of which lies apart from the others of its layer, in the order of their positions."""
    order = np.lexsort((rows.high, rows.low))
    rows = rows.take(order)
    layer = np.zeros(len(order), np.int64)
    if (rows.low[1:] < rows.high[:-1]).any():
        ends: list[int] = []
        for number, (low, high) in enumerate(zip(rows.low.tolist(), rows.high.tolist(), strict=True)):
            found = next((each for each, end in enumerate(ends) if end <= low), len(ends))
            ends[found : found + 1] = [high]
            layer[number] = found
    for number in range(int(layer.max(initial=-1)) + 1):
        yield rows.take(layer == number)


class _Layer:
    """Rows that lie apart from each other, where they are looked up."""

    def __init__(self, rows: _Rows, device: torch.device) -> None:
        self._low, self._high = rows.low, rows.high
        self._depth = (rows.counts > 1).sum(axis=1)
        self._rows = [torch.from_numpy(np.ascontiguousarray(column)).to(device) for column in rows]

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
        first = int(np.searchsorted(self._high, low, side="right"))
        last = int(np.searchsorted(self._low, high, side="left"))
        if first >= last:
            return None
        lows, highs, begins, target, write, run, counts, reads, writes = (column[first:last] for column in self._rows)
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


def _holding(lows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """For each position the last row that begins at or before it; the first row for what comes before all."""
    bounds = torch.searchsorted(positions, lows[1:])
    times = torch.diff(bounds, prepend=bounds.new_zeros(1), append=bounds.new_full((1,), len(positions)))
    return torch.repeat_interleave(times, output_size=len(positions))
