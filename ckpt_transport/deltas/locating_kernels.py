"""The Triton kernels that find where elements of carriers go: a program reads a block of units of one of them.

Three tables say what there is, of one size of elements. Numbers are of 64 bits.

A row of ``carriers``: the form, where counts or mask, places and values lie, the units of the range, how many elements
are carried, the number of its first block, and the bit of its first unit among those that are marked.

A row of ``parts``, of which each is a carrier and the rows of one layer that it may meet: the carrier, the position of
its first unit, where the layer's columns lie, how many rows it has, the first of these and the one behind the last,
dimensions, the most that one of them needs, the number of the part's first block, and which block of the carrier it is.

A column of a layer after the other: what :class:`~ckpt_transport.deltas.copied_rows.Rows` has, where a column of
several dimensions is several.

``lies`` has three numbers for each carrier, which become 1 where counts, places or a mask are wrong, and where an
element is in another carrier, too. Whatever a carrier claims, no more of it is read than is there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ckpt_transport.deltas.encoding_kernels import WORD_BITS, _bits_of

LIST, MASK = tl.constexpr(0), tl.constexpr(1)
WORD_SHIFT = tl.constexpr(5)
CARRIER_FIELDS, PART_FIELDS, LIES = tl.constexpr(8), tl.constexpr(10), tl.constexpr(3)
ROW_COLUMNS = tl.constexpr(6)
"""Before those that have dimensions."""


@triton.jit
def _words_of(mask, units, over):
    """Words of a mask, without the bits behind its last byte."""
    word = tl.load(mask + over, mask=over * WORD_BITS < units, other=0)
    left = (units + 7) // 8 * 8 - over * WORD_BITS
    kept = (tl.full([], 1, tl.int64) << tl.minimum(tl.maximum(left, 0), WORD_BITS)) - 1
    return word & kept.to(tl.int32)


@triton.jit
def count_carried(carriers, carrier_of, carried, lies, BLOCK_UNITS: tl.constexpr):
    """Write how many elements of each block are carried."""
    block = tl.program_id(0).to(tl.int64)
    index = tl.load(carrier_of + block)
    carrier = carriers + CARRIER_FIELDS * index
    form, first, units = tl.load(carrier), tl.load(carrier + 1), tl.load(carrier + 4)
    number = block - tl.load(carrier + 6)
    start = number * BLOCK_UNITS
    if form == LIST:
        count = tl.load(first.to(tl.pointer_type(tl.uint32)) + number).to(tl.int64)
        if count > BLOCK_UNITS:
            tl.store(lies + LIES * index, 1)
            count = count * 0
    else:
        count = tl.minimum(units - start, BLOCK_UNITS)
        if form == MASK:
            over = start // WORD_BITS + tl.arange(0, BLOCK_UNITS // WORD_BITS)
            word = _words_of(first.to(tl.pointer_type(tl.int32)), units, over)
            count = tl.sum(_bits_of(word), axis=0).to(tl.int64)
            left = tl.minimum(tl.maximum(units - over * WORD_BITS, 0), WORD_BITS)
            inside = ((tl.full([], 1, tl.int64) << left) - 1).to(tl.int32)
            if tl.max(((word & ~inside) != 0).to(tl.int32), axis=0) != 0:
                tl.store(lies + LIES * index, 1)
    tl.store(carried + block, count.to(tl.int32))


@triton.jit
def _last_from(lows, first, last, positions):
    """Of some rows the last that begins at or before each position; the first one for what comes before all."""
    found = positions * 0 + first
    left = last - first
    while left > 1:
        half = left // 2
        found = tl.where(tl.load(lows + found + half) <= positions, found + half, found)
        left -= half
    return found


@triton.jit
def _near(part, begin, end):
    """Those rows of a part that may hold what is between two positions."""
    lows = tl.load(part + 2).to(tl.pointer_type(tl.int64))
    first = _last_from(lows, tl.load(part + 4), tl.load(part + 5), begin)
    return first, _last_from(lows, first, tl.load(part + 5), end) + 1


@triton.jit
def _held_by(part, first, last, positions, unit):
    """Which of some rows may hold each position; whether it does, and where it is in its served tensor."""
    lows = tl.load(part + 2).to(tl.pointer_type(tl.int64))
    rows, dimensions, depth = tl.load(part + 3), tl.load(part + 6), tl.load(part + 7)
    columns = lows + _last_from(lows, first, last, positions)
    held = (tl.load(columns) <= positions) & (positions + unit <= tl.load(columns + rows))
    within = positions - tl.load(columns + 2 * rows)
    to = tl.load(columns + 4 * rows)
    if depth > 0:
        for dimension in range(dimensions - depth, dimensions):
            counts = columns + (ROW_COLUMNS + dimension) * rows
            stride = tl.load(counts + dimensions * rows)
            step = within // stride
            held &= step < tl.load(counts)
            to += step * tl.load(counts + 2 * dimensions * rows)
            within -= step * stride
        held &= within <= tl.load(columns + 5 * rows) - unit
    return columns + 3 * rows, held, to + within


@triton.jit
def _all_held(part, first, last, begin, end):
    """Whether one row without strides holds all that is between two positions."""
    held = (first + 1 == last) & (tl.load(part + 4) < tl.load(part + 5)) & (tl.load(part + 7) == 0)
    if held:
        row = tl.load(part + 2).to(tl.pointer_type(tl.int64)) + first
        held = (tl.load(row) <= begin) & (end < tl.load(row + tl.load(part + 3)))
    return held


@triton.jit
def _carried_by_mask(mask, start, over, inside):
    """Whether units from ``start`` on are carried."""
    at = start + over
    word = tl.load(mask + (at >> WORD_SHIFT), mask=inside, other=0)
    return ((word >> (at & (WORD_BITS - 1)).to(tl.int32)) & 1) != 0


@triton.jit(do_not_specialize=["unit"])
def count_located(
    carriers, parts, part_of, edges, located, lies, unit: tl.int64, BLOCK_UNITS: tl.constexpr, STEP: tl.constexpr
):
    """Write how many elements of each block of a part are held by a row, and check counts and places."""
    block = tl.program_id(0).to(tl.int64)
    part = parts + PART_FIELDS * tl.load(part_of + block)
    index, origin = tl.load(part), tl.load(part + 1)
    carrier = carriers + CARRIER_FIELDS * index
    form, units, count, base = tl.load(carrier), tl.load(carrier + 4), tl.load(carrier + 5), tl.load(carrier + 6)
    number = block - tl.load(part + 8) + tl.load(part + 9)
    start = number * BLOCK_UNITS
    before = tl.load(edges + base)
    first = tl.load(edges + base + number) - before
    all_of_it = tl.load(edges + base + (units + BLOCK_UNITS - 1) // BLOCK_UNITS) - before
    if (number == 0) & (all_of_it != count):
        tl.store(lies + LIES * index, 1)
    lanes = tl.minimum(units - start, BLOCK_UNITS)
    begin, end = origin + start * unit, origin + (start + lanes) * unit - 1
    from_row, to_row = _near(part, begin, end)
    is_held = _all_held(part, from_row, to_row, begin, end)
    looks_up = (tl.load(part + 4) < tl.load(part + 5)) & (not is_held)
    here_carried = tl.load(edges + base + number + 1) - before - first
    if form == LIST:
        lanes = tl.minimum(here_carried, count - first)
    elif is_held:
        lanes = lanes * 0
    places = tl.load(carrier + 2).to(tl.pointer_type(tl.uint16)) + first
    mask = tl.load(carrier + 1).to(tl.pointer_type(tl.int32))
    found = tl.zeros([STEP], tl.int32)
    wrong = tl.zeros([STEP], tl.int32)
    for step in range(0, lanes, STEP):
        over = step + tl.arange(0, STEP).to(tl.int64)
        here = over < lanes
        place = over
        if form == LIST:
            place = tl.load(places + over, mask=here, other=0).to(tl.int64)
            previous = tl.load(places + over - 1, mask=here & (over > 0), other=0).to(tl.int64)
            wrong |= (here & (((over > 0) & (place <= previous)) | (start + place >= units))).to(tl.int32)
        if form == MASK:
            here &= _carried_by_mask(mask, start, over, here)
        if looks_up:
            _, held, _ = _held_by(part, from_row, to_row, origin + (start + place) * unit, unit)
            found += (here & held).to(tl.int32)
    all_found = tl.sum(found, axis=0)
    if is_held:
        all_found = here_carried.to(tl.int32)
    tl.store(located + block, all_found)
    if tl.max(wrong, axis=0) != 0:
        tl.store(lies + LIES * index + 1, 1)


@triton.jit
def write_located(
    carriers, parts, part_of, edges, upto, bases, addresses, values,
    TYPE: tl.constexpr, UNIT: tl.constexpr, BLOCK_UNITS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Write addresses and values of elements that are held by a row, those of a block of a part from ``upto`` on."""
    block = tl.program_id(0).to(tl.int64)
    to = tl.load(upto + block)
    if tl.load(upto + block + 1) != to:
        part = parts + PART_FIELDS * tl.load(part_of + block)
        carrier = carriers + CARRIER_FIELDS * tl.load(part)
        origin, form, units, base = tl.load(part + 1), tl.load(carrier), tl.load(carrier + 4), tl.load(carrier + 6)
        number = block - tl.load(part + 8) + tl.load(part + 9)
        start = number * BLOCK_UNITS
        first = tl.load(edges + base + number) - tl.load(edges + base)
        lanes = tl.minimum(units - start, BLOCK_UNITS)
        from_row, to_row = _near(part, origin + start * UNIT, origin + (start + lanes) * UNIT - 1)
        if form == LIST:
            lanes = tl.load(edges + base + number + 1) - tl.load(edges + base) - first
        places = tl.load(carrier + 2).to(tl.pointer_type(tl.uint16)) + first
        mask = tl.load(carrier + 1).to(tl.pointer_type(tl.int32))
        brought = tl.load(carrier + 3).to(tl.pointer_type(TYPE)) + first
        for step in range(0, lanes, STEP):
            over = step + tl.arange(0, STEP).to(tl.int64)
            here = over < lanes
            place = over
            which = over
            if form == LIST:
                place = tl.load(places + over, mask=here, other=0).to(tl.int64)
            if form == MASK:
                here &= _carried_by_mask(mask, start, over, here)
                ones = here.to(tl.int32)
                which = (tl.cumsum(ones, axis=0) - ones).to(tl.int64)
            target, held, at = _held_by(part, from_row, to_row, origin + (start + place) * UNIT, UNIT)
            held &= here
            ones = held.to(tl.int32)
            there = to + tl.cumsum(ones, axis=0) - ones
            address = tl.load(bases + tl.load(target, mask=held, other=0), mask=held, other=0) + at
            tl.store(addresses + there, address, mask=held)
            tl.store(values + there, tl.load(brought + which, mask=held, other=0), mask=held)
            to += tl.sum(ones, axis=0)
            if form == MASK:
                brought += tl.sum(here.to(tl.int32), axis=0)


@triton.jit
def _mark(marks, bits, at, here, window):
    """Set bits of words that begin at a bit each, which may lie across two of the marks; whether one was set."""
    shift, word = at & (WORD_BITS - 1), at >> WORD_SHIFT
    wide = bits.to(tl.int64) & 0xFFFFFFFF
    low, high = (wide << shift).to(tl.int32), ((wide << shift) >> WORD_BITS).to(tl.int32)
    low_here = here & (low != 0) & (word >= 0) & (word < window)
    high_here = here & (high != 0) & (word >= -1) & (word + 1 < window)
    was_low = tl.atomic_or(marks + word, low, mask=low_here, sem="relaxed")
    was_high = tl.atomic_or(marks + word + 1, high, mask=high_here, sem="relaxed")
    return (low_here & ((was_low & low) != 0)) | (high_here & ((was_high & high) != 0))


@triton.jit(do_not_specialize=["first_block", "first_bit", "window"])
def mark_carried(
    carriers, carrier_of, edges, marks, lies, first_block: tl.int64, first_bit: tl.int64, window: tl.int64,
    BLOCK_UNITS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Mark each element that is carried, and see which was marked. ``marks`` are ``window`` words from one bit on."""
    block = first_block + tl.program_id(0)
    index = tl.load(carrier_of + block)
    carrier = carriers + CARRIER_FIELDS * index
    form, units, count, base = tl.load(carrier), tl.load(carrier + 4), tl.load(carrier + 5), tl.load(carrier + 6)
    number = block - base
    start = number * BLOCK_UNITS
    bit = tl.load(carrier + 7) + start - first_bit
    before = tl.load(edges + base)
    first = tl.load(edges + base + number) - before
    units_here = tl.minimum(units - start, BLOCK_UNITS)
    if (bit < window * WORD_BITS) & (bit + units_here > 0):
        lanes = (units_here + WORD_BITS - 1) // WORD_BITS
        if form == LIST:
            lanes = tl.minimum(tl.load(edges + base + number + 1) - before, count) - first
        places = tl.load(carrier + 2).to(tl.pointer_type(tl.uint16)) + first
        mask = tl.load(carrier + 1).to(tl.pointer_type(tl.int32))
        twice = tl.zeros([STEP], tl.int32)
        for step in range(0, lanes, STEP):
            over = step + tl.arange(0, STEP).to(tl.int64)
            here = over < lanes
            left = tl.minimum(tl.maximum(units_here - over * WORD_BITS, 0), WORD_BITS)
            bits = ((tl.full([], 1, tl.int64) << left) - 1).to(tl.int32)
            at = over * WORD_BITS
            if form == LIST:
                at = tl.load(places + over, mask=here, other=0).to(tl.int64)
                here &= start + at < units
                bits = bits * 0 + 1
            if form == MASK:
                bits &= tl.load(mask + start // WORD_BITS + over, mask=here, other=0)
            twice |= _mark(marks, bits, bit + at, here, window).to(tl.int32)
        if tl.max(twice, axis=0) != 0:
            tl.store(lies + LIES * index + 2, 1)
