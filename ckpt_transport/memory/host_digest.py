"""Sums of :mod:`ckpt_transport.memory.digest_pages` of bytes on the host, by NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.memory.digest_pages import (
    COLUMN_SALT,
    COLUMNS,
    GOLDEN,
    PAGE_BYTES,
    PAGE_SUMS,
    ROW_BYTES,
    ROWS,
    WORD_BYTES,
    Digest,
    Words,
    keys,
    mix,
    page_count,
)
from ckpt_transport.memory.host_copies import move_each

PAGES_AT_ONCE = 512
"""For each call of NumPy, 128 MiB. At each call a thread asks for Python's lock, which an engine's forward passes need,
too, so that these wait for few calls. In calls of 2 MiB the second sum would find the bytes in a cache, which is worth
less."""
PAGES_COPIED = 8
"""So many are copied at a time, to where a core's cache keeps them."""
PAGES_SHORT = 32
"""Of short runs, whose sums are mixed at a time: a core's cache keeps them."""
SHORT_ROWS = 2
SHORT_BYTES = SHORT_ROWS * ROW_BYTES
"""Runs of no more bytes are put side by side: the calls for one would take longer than they do."""
MASK = (1 << 64) - 1


def digests_of_pages(runs: Sequence[torch.Tensor]) -> Iterator[Digest]:
    """The digest of each of these by itself. What is short takes as many calls of NumPy as what is long, so most of
    them are made for many at once.

    Args:
        runs: as those of :func:`~ckpt_transport.memory.digest.digest`, on the host, each of a page at most and not
            empty.
    """
    of_rows, of_columns = (numbers[:each] for numbers, each in zip(_numbers(), (ROWS, COLUMNS), strict=True))
    for start in range(0, len(runs), PAGES_SHORT):
        some = runs[start : start + PAGES_SHORT]
        along = np.empty(len(some) * (ROWS + COLUMNS), np.uint64)
        rows = along[: len(some) * ROWS].reshape(-1, ROWS)
        columns = along[len(some) * ROWS :].reshape(-1, COLUMNS)
        for number, run in enumerate(some):
            sums_along(run.numpy(), rows[number : number + 1], columns[number : number + 1])
        rows += of_rows
        columns += of_columns
        mix(along)
        yield from map(bytes, np.stack((rows.sum(axis=1), columns.sum(axis=1)), axis=1))


def add(sums: Words, raw: npt.NDArray[np.uint8], first: int) -> int:
    """Add the pages of a run to both sums; its first is page ``first``. Returns the number of the next page."""
    along = np.empty(min(page_count(raw.size), PAGES_AT_ONCE) * (ROWS + COLUMNS), np.uint64)
    for start in range(0, raw.size, PAGES_AT_ONCE * PAGE_BYTES):
        some = raw[start : start + PAGES_AT_ONCE * PAGE_BYTES]
        count = page_count(some.size)
        of_rows, of_columns = along[: count * ROWS], along[count * ROWS : count * (ROWS + COLUMNS)]
        sums_along(some, of_rows.reshape(count, ROWS), of_columns.reshape(count, COLUMNS))
        add_sums(sums, along[: count * (ROWS + COLUMNS)], first)
        first += count
    return first


def add_short(sums: Words, addresses: Sequence[int], sizes: Sequence[int], first: int) -> int:
    """As :func:`add`, of short runs of host memory, each of which is one page."""
    most = min(len(sizes), PAGES_SHORT)
    side_by_side, along = np.empty(most * SHORT_BYTES // WORD_BYTES, np.uint64), np.empty(most * PAGE_SUMS, np.uint64)
    begin = side_by_side.ctypes.data
    for start in range(0, len(sizes), PAGES_SHORT):
        some = sizes[start : start + PAGES_SHORT]
        count, deep = len(some), -(-max(some) // ROW_BYTES)
        words, pages = side_by_side[: count * deep * COLUMNS], along[: count * PAGE_SUMS]
        if min(some) < deep * ROW_BYTES:
            words.fill(0)
        move_each(range(begin, begin + words.nbytes, deep * ROW_BYTES), addresses[start : start + PAGES_SHORT], some)
        rows, columns = pages[: count * ROWS].reshape(count, ROWS), pages[count * ROWS :].reshape(count, COLUMNS)
        rows[:, deep:] = 0
        deep_pages = words.reshape(count, deep, COLUMNS)
        np.einsum("kij,j->ki", deep_pages, keys(), out=rows[:, :deep])
        np.add.reduce(deep_pages, axis=1, out=columns)
        add_sums(sums, pages, first)
        first += count
    return first


def sums_along(raw: npt.NDArray[np.uint8], rows: Words, columns: Words) -> None:
    """Write the sums along rows and columns of the pages of a run to ``rows`` and ``columns``, one line for each page.

    Bytes at an address that is no multiple of a word's size are copied first, some pages at a time: NumPy would do the
    same twice.
    """
    if raw.ctypes.data % WORD_BYTES == 0:
        _sums_along(raw, rows, columns)
        return
    for page in range(0, len(rows), PAGES_COPIED):
        end = page + PAGES_COPIED
        _sums_along(raw[page * PAGE_BYTES : end * PAGE_BYTES].copy(), rows[page:end], columns[page:end])


def add_sums(sums: Words, along: Words, first: int) -> None:
    """Add pages, at most :data:`PAGES_AT_ONCE`, to both sums; the first of them is page ``first``.

    Args:
        along: the sums along all rows, and behind them those along all columns; they are overwritten.
    """
    count = along.size // (ROWS + COLUMNS)
    rows, columns = along[: count * ROWS], along[count * ROWS :]
    for part, each, numbers in zip((rows, columns), (ROWS, COLUMNS), _numbers(), strict=True):
        part += numbers[: part.size]
        part += np.uint64(first * each * GOLDEN & MASK)
    mix(along)
    sums[0] += rows.sum()
    sums[1] += columns.sum()


def _sums_along(raw: npt.NDArray[np.uint8], rows: Words, columns: Words) -> None:
    """As :func:`sums_along`, of a few pages at an address that is a multiple of a word's size.

    The slower sum comes first: it hides how long memory takes. For whole numbers ``np.einsum`` works on several words
    at a time, and ``np.dot`` on one.
    """
    words = raw[: raw.size // ROW_BYTES * ROW_BYTES].view(np.uint64).reshape(-1, COLUMNS)
    full, more = divmod(len(words), ROWS)
    np.einsum("ij,j->i", words, keys(), out=rows.reshape(-1)[: len(words)])
    np.add.reduce(words[: full * ROWS].reshape(full, ROWS, COLUMNS), axis=1, out=columns[:full])
    if full < len(rows):
        rest = np.zeros(COLUMNS, np.uint64)
        rest.view(np.uint8)[: raw.size - words.nbytes] = raw[words.nbytes :]
        rows[full, more:] = 0
        rows[full, more] = np.dot(rest, keys())
        np.add.reduce(words[full * ROWS :], axis=0, out=columns[full])
        columns[full] += rest


@cache
def _numbers() -> tuple[Words, Words]:
    """The number of each row, and of each column, of the first pages, spread over 64 bits."""
    rows = np.arange(1, PAGES_AT_ONCE * ROWS + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    columns = np.arange(1, PAGES_AT_ONCE * COLUMNS + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    return rows, columns + np.uint64(COLUMN_SALT)
