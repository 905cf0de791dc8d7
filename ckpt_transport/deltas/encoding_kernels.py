"""The Triton kernels that find what differs: one program marks and counts a block of units, one writes it.

Each reads its range from a row of a table, and which range it is of from ``range_of``. What differs is read once more
only where it does.
"""

from __future__ import annotations

import triton
import triton.language as tl

WORD_BITS = tl.constexpr(32)


@triton.jit
def _mark(differ, marks, STEP: tl.constexpr):
    """Write a bit for each unit that was looked at."""
    bits = tl.sum(tl.reshape(differ, [STEP // 8, 8]) << tl.arange(0, 8)[None, :], axis=1)
    tl.store(marks + tl.arange(0, STEP // 8), bits.to(tl.uint8))


@triton.jit
def mark_differing(
    ranges, range_of, marks, counts,
    UNIT: tl.constexpr, ALIGNMENT: tl.constexpr, BLOCK_UNITS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Write to ``marks`` which units of each block differ, and to ``counts`` how many.

    A row of ``ranges``: where the base and the new one lie, their units, and the number of the first block.
    """
    block = tl.program_id(0).to(tl.int64)
    row = ranges + 4 * tl.load(range_of + block)
    start = (block - tl.load(row + 3)) * BLOCK_UNITS
    base = tl.load(row).to(tl.pointer_type(UNIT)) + start
    new = tl.load(row + 1).to(tl.pointer_type(UNIT)) + start
    units = tl.load(row + 2) - start
    marks += block * (BLOCK_UNITS // 8)
    found = tl.zeros([STEP], tl.int32)
    if units >= BLOCK_UNITS:  # without a mask, words of 16 bytes are read
        for step in range(0, BLOCK_UNITS, STEP):
            at = step + tl.arange(0, STEP)
            was = tl.load(tl.multiple_of(base + at, ALIGNMENT))
            differ = (was != tl.load(tl.multiple_of(new + at, ALIGNMENT))).to(tl.int32)
            _mark(differ, marks + step // 8, STEP)
            found += differ
    else:
        for step in range(0, BLOCK_UNITS, STEP):
            at = step + tl.arange(0, STEP)
            was = tl.load(base + at, mask=at < units, other=0)
            differ = (was != tl.load(new + at, mask=at < units, other=0)).to(tl.int32)
            _mark(differ, marks + step // 8, STEP)
            found += differ
    tl.store(counts + block, tl.sum(found, axis=0))


@triton.jit
def _bits_of(word):
    """How many bits of each word are set."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    word = word + (word >> 8)
    return (word + (word >> 16)) & 0x3F


@triton.jit(do_not_specialize=["marks"])
def write_differing(ranges, range_of, marks, counts, firsts, UNIT: tl.constexpr, BLOCK_UNITS: tl.constexpr):
    """Write counts of blocks, places within their block, and values, those of a block from ``firsts`` on.

    A row of ``ranges``: where the new one lies, the number of the first block, and where counts, places and values go,
    of which 0 is nowhere. Marks are read as words, one for each thread at a time: as nobody knows how ``marks`` is
    aligned, it is the same thread that writes, and nothing is exchanged with others in the loop.
    """
    block = tl.program_id(0).to(tl.int64)
    row = ranges + 5 * tl.load(range_of + block)
    number = block - tl.load(row + 1)
    counts_to, places_to, values_to = tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)
    if counts_to != 0:
        tl.store(counts_to.to(tl.pointer_type(tl.int32)) + number, tl.load(counts + block))
    if values_to != 0:
        new = tl.load(row).to(tl.pointer_type(UNIT)) + number * BLOCK_UNITS
        over = tl.arange(0, BLOCK_UNITS // WORD_BITS)
        word = tl.load(marks + block * (BLOCK_UNITS // WORD_BITS) + over)
        left = _bits_of(word)
        first = tl.load(firsts + block)
        places, values = places_to.to(tl.pointer_type(tl.int16)) + first, values_to.to(tl.pointer_type(UNIT)) + first
        to = tl.cumsum(left, axis=0) - left
        for _ in range(tl.max(left, axis=0)):
            here, lowest = word != 0, word & -word
            place = over * WORD_BITS + _bits_of(lowest - 1)
            tl.store(places + to, place.to(tl.int16), mask=here & (places_to != 0))
            tl.store(values + to, tl.load(new + place, mask=here, other=0), mask=here)
            word = word ^ lowest
            to += 1
