"""What an engine's loader copies, compiled to rows that can be looked up by the position of an element."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ckpt_transport.errors import DeltaRefusedError
from ckpt_transport.memory import StridedBytes
from ckpt_transport.planning import PlacedTensor, TensorSpec, run_by_run

Numbers = npt.NDArray[np.int64]
FAR = 1 << 62
"""A stride along which there is one step only."""
MOST_REPEATED = 1024
"""One element is not copied to more places than this."""


class Rows(NamedTuple):
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

    def take(self, which: Numbers | npt.NDArray[np.bool_] | slice) -> Rows:
        return Rows(*(column[which] for column in self))


def rows_of(
    placed: Sequence[PlacedTensor], starts: Sequence[int], specs: Sequence[TensorSpec], copies: StridedBytes
) -> Rows:
    known = {spec.name: (number, spec) for number, spec in enumerate(specs)}
    sources = []
    for tensor in placed:
        number, spec = known.get(tensor.spec.name, (-1, None))
        if spec != tensor.spec:
            raise DeltaRefusedError(f"{tensor.spec} is not a tensor of the version that is served")
        sources += [number] * tensor.runs
    placed = list(run_by_run(placed))
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
    rows = Rows(low, high, begin, each.target, each.write, each.run, each.counts, strides, each.write_strides)
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


def _once(rows: Rows, placed: Sequence[PlacedTensor], of: Numbers) -> Rows:
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


def apart(rows: Rows) -> Iterator[Rows]:
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
