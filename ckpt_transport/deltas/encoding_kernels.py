"""The Triton kernels that find what differs: one program counts a block of units, one writes it."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _differ(base, new, at, units):
    """Which units at these places differ, as 0 or 1, and what they become."""
    inside = at < units
    values = tl.load(new + at, mask=inside, other=0)
    return (tl.load(base + at, mask=inside, other=0) != values).to(tl.int32), values


@triton.jit(do_not_specialize=["base", "new", "units"])
def count_differing(base, new, counts, units: tl.int64, BLOCK_UNITS: tl.constexpr, STEP: tl.constexpr):
    """Write to ``counts`` how many units of each block differ."""
    block = tl.program_id(0).to(tl.int64)
    found = tl.zeros([STEP], tl.int32)
    for step in range(0, BLOCK_UNITS, STEP):
        differ, _ = _differ(base, new, block * BLOCK_UNITS + step + tl.arange(0, STEP), units)
        found += differ
    tl.store(counts + block, tl.sum(found, axis=0))


@triton.jit(do_not_specialize=["base", "new", "places", "values", "units"])
def write_listed(base, new, firsts, places, values, units: tl.int64, BLOCK_UNITS: tl.constexpr, STEP: tl.constexpr):
    """Write places within their block and values, those of a block from ``firsts`` on."""
    block = tl.program_id(0).to(tl.int64)
    first = tl.load(firsts + block)
    over = tl.arange(0, STEP)
    for step in range(0, BLOCK_UNITS, STEP):
        differ, become = _differ(base, new, block * BLOCK_UNITS + step + over, units)
        to = first + tl.cumsum(differ, axis=0) - 1
        tl.store(places + to, (step + over).to(tl.int16), mask=differ == 1)
        tl.store(values + to, become, mask=differ == 1)
        first += tl.sum(differ, axis=0)


@triton.jit(do_not_specialize=["base", "new", "mask", "values", "units"])
def write_masked(base, new, firsts, mask, values, units: tl.int64, BLOCK_UNITS: tl.constexpr, STEP: tl.constexpr):
    """Write a bit for each unit, and values, those of a block from ``firsts`` on."""
    block = tl.program_id(0).to(tl.int64)
    first = tl.load(firsts + block)
    for step in range(0, BLOCK_UNITS, STEP):
        start = block * BLOCK_UNITS + step
        differ, become = _differ(base, new, start + tl.arange(0, STEP), units)
        bits = tl.sum(tl.reshape(differ, [STEP // 8, 8]) << tl.arange(0, 8)[None, :], axis=1)
        at = start // 8 + tl.arange(0, STEP // 8)
        tl.store(mask + at, bits.to(tl.uint8), mask=at * 8 < units)
        tl.store(values + (first + tl.cumsum(differ, axis=0) - 1), become, mask=differ == 1)
        first += tl.sum(differ, axis=0)
