"""The Triton kernel computes :mod:`ckpt_transport.memory.digest_pages` on a GPU, with one program for each page."""

from __future__ import annotations

import triton
import triton.language as tl

from ckpt_transport.memory import digest_pages

ROWS = tl.constexpr(digest_pages.ROWS)
COLUMNS = tl.constexpr(digest_pages.COLUMNS)
TOGETHER = tl.constexpr(2)
"""Rows that are read at a time."""
ALIGNMENT = tl.constexpr(digest_pages.ALIGNMENT)
GOLDEN = tl.constexpr(digest_pages.GOLDEN)
COLUMN_SALT = tl.constexpr(digest_pages.COLUMN_SALT)
SHIFT_1, SHIFT_2, SHIFT_3 = map(tl.constexpr, digest_pages.SHIFTS)
MULTIPLIER_1, MULTIPLIER_2 = map(tl.constexpr, digest_pages.MULTIPLIERS)


@triton.jit
def _mix(numbers):
    numbers = (numbers ^ (numbers >> SHIFT_1)) * tl.full([], MULTIPLIER_1, tl.uint64)
    numbers = (numbers ^ (numbers >> SHIFT_2)) * tl.full([], MULTIPLIER_2, tl.uint64)
    return numbers ^ (numbers >> SHIFT_3)


@triton.jit
def _words(raw, nbytes, at):
    """The words at these places, in words from ``raw``; zero behind the end. The last may be of fewer than 8 bytes."""
    words = tl.load(raw.to(tl.pointer_type(tl.uint64)) + at, mask=at * 8 + 8 <= nbytes, other=0)
    tail = nbytes // 8
    if nbytes % 8 != 0:
        offsets = tl.arange(0, 8)
        last = tl.load(raw + tail * 8 + offsets, mask=tail * 8 + offsets < nbytes, other=0).to(tl.uint64)
        words += tl.where(at == tail, tl.sum(last << (offsets * 8).to(tl.uint64), axis=0), 0)
    return words


@triton.jit
def _add_page(sums, raw, nbytes, number, keys):
    """Add page ``number`` to both sums; it begins at ``raw`` and ends after ``nbytes``, or when it is full."""
    over = tl.arange(0, COLUMNS)
    key = tl.load(keys + over).to(tl.uint64, bitcast=True)
    columns = tl.zeros([COLUMNS], tl.uint64)
    rows = tl.zeros([], tl.uint64)
    golden = tl.full([], GOLDEN, tl.uint64)
    whole = nbytes >= ROWS * COLUMNS * 8
    for row in range(0, ROWS, TOGETHER):
        down = row + tl.arange(0, TOGETHER)
        at = down[:, None] * COLUMNS + over[None, :]
        if whole:  # noqa: SIM108
            words = tl.load(raw.to(tl.pointer_type(tl.uint64)) + at)
        else:
            words = _words(raw, nbytes, at)
        columns += tl.sum(words, axis=0)
        along = tl.sum(words * key[None, :], axis=1)
        rows += tl.sum(_mix(along + (number * ROWS + down + 1).to(tl.uint64) * golden), axis=0)
    salt = tl.full([], COLUMN_SALT, tl.uint64)
    mixed = _mix(columns + (number * COLUMNS + over + 1).to(tl.uint64) * golden + salt)
    tl.atomic_add(sums, rows.to(tl.int64, bitcast=True), sem="relaxed")
    tl.atomic_add(sums + 1, tl.sum(mixed, axis=0).to(tl.int64, bitcast=True), sem="relaxed")


@triton.jit(do_not_specialize=["nbytes", "first"])
def add_pages(sums, raw, nbytes: tl.int64, first: tl.int64, keys):
    """Add the pages of ``raw``, which begin with page ``first``, to both sums."""
    page = tl.program_id(0).to(tl.int64)
    begin = page * (ROWS * COLUMNS * 8)
    _add_page(sums, raw + begin, nbytes - begin, first + page, keys)


@triton.jit(do_not_specialize=["base"])
def add_listed_pages(sums, base: tl.int64, memories, pages, keys):
    """Add pages to both sums. Of each ``pages`` says in which memory it is, where it begins there, and what is left.

    The addresses of ``memories`` count from ``base`` on.
    """
    page = tl.program_id(0).to(tl.int64)
    entry = pages + 3 * page
    raw = (base + tl.load(memories + tl.load(entry)) + tl.load(entry + 1)).to(tl.pointer_type(tl.uint8))
    _add_page(sums, tl.multiple_of(raw, ALIGNMENT), tl.load(entry + 2), page, keys)
