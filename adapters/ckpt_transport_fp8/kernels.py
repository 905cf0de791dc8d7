"""Triton kernels: maxima and casts of many matrices in one launch.

A program works on one tile of one matrix. Which, it finds in tables: ``tile_part`` says for each tile which matrix it
is of, and the others describe the matrices. The tiles of a matrix are next to each other, row by row.

Only what IEEE leaves no choice in is computed here: maxima, one multiplication, and rounding to the nearest even.
Parameters have no annotations but tl.constexpr: Triton looks every other one up inside the kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

TILE = 128
"""Rows and columns of a tile. A tile has one group of elements, or one for each of its rows."""


@triton.jit
def _tile_of(tile, tile_part, first_tile, rows, columns, TILE: tl.constexpr):
    part = tl.load(tile_part + tile)
    height, width = tl.load(rows + part), tl.load(columns + part)
    across = tl.cdiv(width, TILE)
    number = tile - tl.load(first_tile + part)
    row = (number // across) * TILE
    column = (number % across) * TILE
    return part, height, width, row, column


@triton.jit
def search(
    found,
    tile_part,
    first_tile,
    rows,
    columns,
    pointers,
    high,
    wide,
    first_group,
    BITS: tl.constexpr,
    MAGNITUDE: tl.constexpr,
    PER_ROW: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
):
    """The largest magnitude of each group, as the integer its bits are; ``found`` starts with zeros."""
    part, height, width, row, column = _tile_of(tl.program_id(0), tile_part, first_tile, rows, columns, TILE)
    source = tl.load(pointers + part).to(tl.pointer_type(BITS))
    if ALIGNED:
        width = tl.multiple_of(width, 16)
        source = tl.multiple_of(source, 16)
    down = row + tl.arange(0, TILE)
    over = column + tl.arange(0, TILE)
    inside = (down < height)[:, None] & (over < width)[None, :]
    index = down.to(tl.int64)[:, None] * width + over[None, :]
    bits = tl.load(source + index, mask=inside, other=0).to(tl.int32) & MAGNITUDE
    most = tl.max(bits, axis=1)
    across = tl.cdiv(width, tl.load(wide + part))
    group = tl.load(first_group + part) + column // tl.load(wide + part)
    if PER_ROW:
        tl.atomic_max(found + group + down * across, most, mask=down < height)
    else:
        tl.atomic_max(found + group + (row // tl.load(high + part)) * across, tl.max(most, axis=0))


@triton.jit
def cast(
    room,
    begin,
    end,
    tile,
    tile_part,
    first_tile,
    rows,
    columns,
    pointers,
    high,
    wide,
    first_group,
    offsets,
    factors,
    FLOAT: tl.constexpr,
    PER_ROW: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Elements times the factor of their group, as e4m3, into the bytes of ``room`` that hold ``begin`` to ``end``."""
    part, height, width, row, column = _tile_of(tile + tl.program_id(0), tile_part, first_tile, rows, columns, TILE)
    source = tl.load(pointers + part).to(tl.pointer_type(FLOAT))
    offset = tl.load(offsets + part)
    if ALIGNED:
        width = tl.multiple_of(width, 16)
        source = tl.multiple_of(source, 16)
        offset = tl.multiple_of(offset, 16)
        begin = tl.multiple_of(begin, 16)
    down = row + tl.arange(0, TILE)
    over = column + tl.arange(0, TILE)
    index = down.to(tl.int64)[:, None] * width + over[None, :]
    place = offset - begin + index
    inside = (down < height)[:, None] & (over < width)[None, :] & (place >= 0) & (place < end - begin)
    elements = tl.load(source + index, mask=inside, other=0.0).to(tl.float32)
    across = tl.cdiv(width, tl.load(wide + part))
    group = tl.load(first_group + part) + column // tl.load(wide + part)
    if PER_ROW:
        factor = tl.load(factors + group + down * across, mask=down < height, other=0.0)[:, None]
    else:
        factor = tl.load(factors + group + (row // tl.load(high + part)) * across)
    rounded = (elements * factor).to(tl.float8e4nv)
    tl.store(room + place, rounded.to(tl.uint8, bitcast=True), mask=inside)
