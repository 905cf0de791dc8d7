"""The Triton kernels of a copy table: one program for each tile."""

from __future__ import annotations

import triton
import triton.language as tl

from ckpt_transport.memory import strided_bytes

FIELDS = tl.constexpr(strided_bytes.FIELDS)


@triton.jit
def _move(read, write, inside, EXCHANGE: tl.constexpr):
    """Copy words, or give each of two words the other's place.

    Which of the two is a number and no function, because a process may have Triton write down all constants.
    """
    there = tl.load(read, mask=inside)
    if EXCHANGE:
        here = tl.load(write, mask=inside)
        tl.store(write, there, mask=inside)
        tl.store(read, here, mask=inside)
    else:
        tl.store(write, there, mask=inside)


@triton.jit
def _move_words(tile, read, write, EXCHANGE: tl.constexpr, WORD: tl.constexpr, BLOCK: tl.constexpr):
    rows, columns = tl.load(tile + 4).to(tl.int32), tl.load(tile + 5).to(tl.int32)
    read_row, write_row = tl.load(tile + 6), tl.load(tile + 7)
    read_column, write_column = tl.load(tile + 8), tl.load(tile + 9)
    read, write = read.to(tl.pointer_type(WORD)), write.to(tl.pointer_type(WORD))
    total = rows * columns
    over = tl.arange(0, BLOCK)
    if (rows == 1) & (read_column == 1) & (write_column == 1):
        for start in range(0, total, BLOCK):
            _move(read + (start + over), write + (start + over), start + over < total, EXCHANGE)
    else:
        row, column = over // columns, over % columns
        down, along = BLOCK // columns, BLOCK % columns
        for start in range(0, total, BLOCK):
            _move(
                read + (row * read_row + column * read_column),
                write + (row * write_row + column * write_column),
                start + over < total,
                EXCHANGE,
            )
            row, column = row + down, column + along
            row = tl.where(column < columns, row, row + 1)
            column = tl.where(column < columns, column, column - columns)


@triton.jit(do_not_specialize=["source_base", "target_base"])
def move_tiles(
    tiles,
    source_base: tl.int64,
    sources,
    target_base: tl.int64,
    targets,
    EXCHANGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Move each tile between a memory of ``sources`` and one of ``targets``, whose addresses count from their base."""
    tile = tiles + tl.program_id(0).to(tl.int64) * FIELDS
    read = source_base + tl.load(sources + tl.load(tile)) + tl.load(tile + 2)
    write = target_base + tl.load(targets + tl.load(tile + 1)) + tl.load(tile + 3)
    word = tl.load(tile + 10)
    if word == 8:
        _move_words(tile, read, write, EXCHANGE, tl.int64, BLOCK)
    elif word == 4:
        _move_words(tile, read, write, EXCHANGE, tl.int32, BLOCK)
    elif word == 2:
        _move_words(tile, read, write, EXCHANGE, tl.int16, BLOCK)
    else:
        _move_words(tile, read, write, EXCHANGE, tl.int8, BLOCK)
