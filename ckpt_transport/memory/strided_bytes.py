"""Strided copies of bytes are written in columns, and cut into tiles of about equal work."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]

WIDEST = 8
"""Bytes of the widest word that is copied at once."""
TILE_WORDS = 1 << 15
"""Most words of a tile."""
FIELDS = 11
"""Of a tile, in the order of :mod:`ckpt_transport.memory.copy_kernel`: the numbers of both memories, where it starts in
each in bytes, rows, columns, strides of rows and of columns on either side in words, and bytes of a word."""


class ElementCopy(NamedTuple):
    """A copy of elements.

    Attributes:
        source, target: the memories, by number.
        read, write: where the first element is in these, in bytes.
        size: of an element, in bytes.
        shape: in elements.
        read_strides, write_strides: in bytes.
    """

    source: int
    target: int
    read: int
    write: int
    size: int
    shape: Sequence[int]
    read_strides: Sequence[int]
    write_strides: Sequence[int]


class StridedBytes(NamedTuple):
    """Strided copies of bytes from some memories to others: each array has one element, or one row, for each copy.

    Attributes:
        source, target: the memories, by number.
        read, write: where the first byte is in these, in bytes.
        run: bytes that lie one behind the other on both sides.
        counts: how many runs there are along each dimension, the one of the smallest strides last.
        read_strides, write_strides: how far apart these are, in bytes.
    """

    source: Numbers
    target: Numbers
    read: Numbers
    write: Numbers
    run: Numbers
    counts: Numbers
    read_strides: Numbers
    write_strides: Numbers

    @classmethod
    def contiguous(cls, source: Numbers, target: Numbers, read: Numbers, write: Numbers, run: Numbers) -> Self:
        """Copies of one run each."""
        no_dimensions = np.empty((len(run), 0), np.int64)
        return cls(source, target, read, write, run, no_dimensions, no_dimensions, no_dimensions)

    @classmethod
    def of(cls, copies: Sequence[ElementCopy]) -> Self:
        """Copies of elements, with their dimensions in any order."""
        if not copies:
            return cls.contiguous(*np.empty((5, 0), np.int64))
        source, target, read, write, size, shapes, reads, writes = zip(*copies, strict=True)
        most = max(map(len, shapes))
        runs = cls(
            *(np.array(column, np.int64) for column in (source, target, read, write, size)),
            *(_padded(rows, most, by) for rows, by in ((shapes, 1), (reads, 0), (writes, 0))),
        )
        return runs._sorted()._folded()

    def _sorted(self) -> Self:
        """The dimension of the smallest stride last, those of one element first."""
        order = np.argsort(
            np.where(self.counts == 1, np.iinfo(np.int64).min, -self.write_strides), axis=1, kind="stable"
        )
        sort = partial(np.take_along_axis, indices=order, axis=1)
        return self._replace(
            counts=sort(self.counts), read_strides=sort(self.read_strides), write_strides=sort(self.write_strides)
        )

    def _folded(self) -> Self:
        """Dimensions along which bytes lie one behind the other become part of the run."""
        run, counts = self.run.copy(), self.counts.copy()
        for dimension in reversed(range(counts.shape[1])):
            follows = (self.read_strides[:, dimension] == run) & (self.write_strides[:, dimension] == run)
            run[follows] *= counts[follows, dimension]
            counts[follows, dimension] = 1
        return self._replace(run=run, counts=counts)

    def take(self, which: npt.NDArray[np.bool_] | Numbers) -> Self:
        """Some of the copies."""
        return type(self)(*(column[which] for column in self))


def tiles(copies: StridedBytes, source_phases: Numbers, target_phases: Numbers) -> Numbers:
    """Cut copies into tiles: rows and columns of words, as wide as the addresses of both sides allow.

    Args:
        copies: what is copied.
        source_phases, target_phases: the address of each memory, modulo :data:`WIDEST`.

    Returns: one row of :data:`FIELDS` numbers for each tile.
    """
    copies = copies.take((copies.run > 0) & (copies.counts > 0).all(axis=1))
    words = _in_words(copies, source_phases, target_phases)
    return _cut(_expanded(*words))


class _Matrices(NamedTuple):
    """Words in rows and columns; strides are in words."""

    source: Numbers
    target: Numbers
    read: Numbers
    write: Numbers
    rows: Numbers
    columns: Numbers
    read_row: Numbers
    write_row: Numbers
    read_column: Numbers
    write_column: Numbers
    word: Numbers


def _in_words(copies: StridedBytes, source_phases: Numbers, target_phases: Numbers) -> tuple[StridedBytes, Numbers]:
    """The same copies with a dimension more, along which words lie; and the width of each copy's words.

    What comes before the first whole word of a run, and behind the last, becomes copies of narrower words.
    """
    from_address = copies.read + source_phases[copies.source]
    to_address = copies.write + target_phases[copies.target]
    several = copies.counts > 1
    strides = np.bitwise_or.reduce(np.where(several, copies.read_strides | copies.write_strides, 0), axis=1)
    width = _lowest_bit((to_address - from_address) | strides | WIDEST)
    head = np.minimum(-to_address % width, copies.run)
    tail = (copies.run - head) % width
    begins = np.concatenate([np.zeros_like(head), head, copies.run - tail])
    lengths = np.concatenate([head, copies.run - head - tail, tail])
    there = np.flatnonzero(lengths)
    each, begins, lengths = there % len(head) if len(head) else there, begins[there], lengths[there]
    word = _lowest_bit((from_address[each] + begins) | (to_address[each] + begins) | lengths | strides[each] | WIDEST)
    parts = copies.take(each)
    along = word[:, None]
    return (
        parts._replace(
            read=parts.read + begins,
            write=parts.write + begins,
            run=word,
            counts=np.concatenate([parts.counts, (lengths // word)[:, None]], axis=1),
            read_strides=np.concatenate([parts.read_strides, along], axis=1),
            write_strides=np.concatenate([parts.write_strides, along], axis=1),
        ),
        word,
    )


def _expanded(copies: StridedBytes, word: Numbers) -> _Matrices:
    """Columns are the last dimension of several words, rows the longest other; along the rest copies are listed."""
    counts = copies.counts.copy()
    each = np.arange(len(counts))
    last = counts.shape[1] - 1 - np.argmax(counts[:, ::-1] > 1, axis=1) if len(counts) else each
    columns = counts[each, last]
    counts[each, last] = 1
    longest = np.argmax(counts, axis=1) if len(counts) else each
    rows = counts[each, longest]
    counts[each, longest] = 1
    times = counts.prod(axis=1)
    of = np.repeat(each, times)
    step = _counted(times)
    read, write = copies.read[of], copies.write[of]
    for dimension in reversed(range(counts.shape[1])):
        count = counts[of, dimension]
        at = step % count
        read += at * copies.read_strides[of, dimension]
        write += at * copies.write_strides[of, dimension]
        step //= count
    reads, writes = copies.read_strides // word[:, None], copies.write_strides // word[:, None]
    return _Matrices(
        copies.source[of],
        copies.target[of],
        read,
        write,
        rows[of],
        columns[of],
        reads[each, longest][of],
        writes[each, longest][of],
        reads[each, last][of],
        writes[each, last][of],
        word[of],
    )


def _cut(matrices: _Matrices) -> Numbers:
    wide = np.minimum(matrices.columns, TILE_WORDS)
    high = np.minimum(matrices.rows, np.maximum(TILE_WORDS // np.maximum(matrices.columns, 1), 1))
    across = -(-matrices.columns // wide)
    times = across * -(-matrices.rows // high)
    of = np.repeat(np.arange(len(times)), times)
    step = _counted(times)
    cut = _Matrices(*(column[of] for column in matrices))
    row, column = step // across[of] * high[of], step % across[of] * wide[of]
    tiled = cut._replace(
        read=cut.read + (row * cut.read_row + column * cut.read_column) * cut.word,
        write=cut.write + (row * cut.write_row + column * cut.write_column) * cut.word,
        rows=np.minimum(high[of], cut.rows - row),
        columns=np.minimum(wide[of], cut.columns - column),
    )
    return np.stack(tiled, axis=1)


def _counted(times: Numbers) -> Numbers:
    """Numbers from 0 on for each of ``times``, one behind the other."""
    return np.arange(times.sum()) - np.repeat(times.cumsum() - times, times)


def _padded(rows: Sequence[Sequence[int]], length: int, by: int) -> Numbers:
    return np.array([(*(by,) * (length - len(row)), *row) for row in rows], np.int64).reshape(len(rows), length)


def _lowest_bit(numbers: Numbers) -> Numbers:
    return numbers & -numbers
