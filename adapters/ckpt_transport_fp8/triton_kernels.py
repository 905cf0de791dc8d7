"""These Triton kernels find the largest magnitudes of matrices, cast matrices, and scatter rows of bytes.

A program works on one tile of one matrix. It finds out which in tables: ``tile_matrix`` says for each tile which matrix
it is of, ``entries`` has eight numbers about each matrix, and ``addresses`` says where it lies. The tiles of a matrix
are next to each other, row by row.

Only what IEEE leaves no choice in is computed here: maxima, one multiplication, and rounding to the nearest even.
Parameters have no annotations but Triton's own types: it looks every other one up inside the kernel. None of them is
specialized: the constants of a kernel say what it may suppose of its arguments; see
:class:`ckpt_transport.spi.Launch`.
"""

from __future__ import annotations

import triton
import triton.language as tl

TILE = 128
"""Rows and columns of a tile. A tile has one group of elements, or one for each of its rows."""


@triton.jit
def _tile_of(tile, tile_matrix, entries, ALIGNED: tl.constexpr, TILE: tl.constexpr):
    matrix = tl.load(tile_matrix + tile)
    entry = entries + matrix.to(tl.int64) * 8
    number = (tile - tl.load(entry)).to(tl.int32)
    height, width = tl.load(entry + 1), tl.load(entry + 2)
    if ALIGNED:
        width = tl.multiple_of(width, 16)
    high, wide = tl.load(entry + 3).to(tl.int32), tl.load(entry + 4).to(tl.int32)
    across = tl.cdiv(width, TILE).to(tl.int32)
    row = (number // across) * TILE
    column = (number % across) * TILE
    groups_across = tl.load(entry + 5)
    group = tl.load(entry + 6) + column // wide
    return matrix, height, width, row, column, high, groups_across, group


@triton.jit(do_not_specialize=["amax", "tile", "tile_matrix", "entries", "addresses"])
def find_amax(
    amax,
    tile: tl.int64,
    tile_matrix,
    entries,
    addresses,
    BITS: tl.constexpr,
    MAGNITUDE: tl.constexpr,
    FLOAT: tl.constexpr,
    PER_ROW: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Put the largest magnitude of each group into ``amax``, as the integer that its bits are as a float32.

    ``amax`` has some already. Magnitudes are in the order of their bits, with infinity and NaN last.
    """
    matrix, height, width, row, column, high, across, group = _tile_of(
        tile + tl.program_id(0), tile_matrix, entries, ALIGNED, TILE
    )
    source = tl.load(addresses + matrix).to(tl.pointer_type(BITS))
    if ALIGNED:
        source = tl.multiple_of(source, 16)
    down = row + tl.arange(0, TILE)
    over = column + tl.arange(0, TILE)
    inside = (down < height)[:, None] & (over < width)[None, :]
    index = down.to(tl.int64)[:, None] * width + over[None, :]
    bits = tl.load(source + index, mask=inside, other=0).to(tl.int32) & MAGNITUDE
    most = tl.max(bits, axis=1).to(BITS).to(FLOAT, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True)
    if PER_ROW:
        tl.atomic_max(amax + group + down * across, most, mask=down < height, sem="relaxed")
    else:
        tl.atomic_max(amax + group + (row // high) * across, tl.max(most, axis=0), sem="relaxed")


@triton.jit(do_not_specialize=["bucket", "begin", "end", "tile", "tile_matrix", "entries", "addresses", "factors"])
def cast(
    bucket: tl.int64,
    begin: tl.int64,
    end: tl.int64,
    tile: tl.int64,
    tile_matrix,
    entries,
    addresses,
    factors,
    FLOAT: tl.constexpr,
    PER_ROW: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write elements times the factor of their group, as e4m3, to the bytes from the address ``bucket`` on.

    These are the bytes from ``begin`` to ``end`` of the extent.
    """
    matrix, height, width, row, column, high, across, group = _tile_of(
        tile + tl.program_id(0), tile_matrix, entries, ALIGNED, TILE
    )
    source = tl.load(addresses + matrix).to(tl.pointer_type(FLOAT))
    target = bucket.to(tl.pointer_type(tl.uint8))
    offset = tl.load(entries + matrix.to(tl.int64) * 8 + 7)
    if ALIGNED:
        source = tl.multiple_of(source, 16)
        target = tl.multiple_of(target, 16)
        offset = tl.multiple_of(offset, 16)
        begin, end = begin // 16 * 16, end // 16 * 16  # of parameters, multiple_of says nothing
    down = row + tl.arange(0, TILE)
    over = column + tl.arange(0, TILE)
    index = down.to(tl.int64)[:, None] * width + over[None, :]
    place = offset - begin + index
    inside = (down < height)[:, None] & (over < width)[None, :] & (place >= 0) & (place < end - begin)
    elements = tl.load(source + index, mask=inside, other=0.0).to(tl.float32)
    if PER_ROW:
        factor = tl.load(factors + group + down * across, mask=down < height, other=0.0)[:, None]
    else:
        factor = tl.load(factors + group + (row // high) * across)
    rounded = (elements * factor).to(tl.float8e4nv)
    tl.store(target + place, rounded.to(tl.uint8, bitcast=True), mask=inside)


@triton.jit(do_not_specialize=["bucket", "begin", "end", "first", "last", "numbers", "rows"])
def scatter_rows(
    bucket,
    begin: tl.int64,
    end: tl.int64,
    first: tl.int64,
    last: tl.int64,
    numbers,
    rows,
    ROW: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Write the rows from ``first`` to before ``last`` to ``bucket``, which begins at ``begin`` in the extent.

    The bucket ends at ``end``. Row n belongs at ``numbers[n] * ROW``. A program writes so many ``TOGETHER``.
    """
    row = first + tl.program_id(0) * TOGETHER + tl.arange(0, TOGETHER)
    over = tl.arange(0, ROW)
    to = (tl.load(numbers + row, mask=row < last, other=0) * ROW - begin)[:, None] + over[None, :]
    inside = (row < last)[:, None] & (to >= 0) & (to < end - begin)
    found = tl.load(rows + row[:, None] * ROW + over[None, :], mask=inside)
    tl.store(bucket + to, found, mask=inside)
