"""The Triton kernel that exchanges elements with what lies at their addresses."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["addresses", "values", "count"])
def exchange_elements(addresses, values, count: tl.int64, BLOCK: tl.constexpr):
    """Exchange ``count`` values, a block for each program."""
    over = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = over < count
    served = tl.load(addresses + over, mask=inside, other=0).to(values.dtype)
    brought = tl.load(values + over, mask=inside)
    kept = tl.load(served, mask=inside)
    tl.store(served, brought, mask=inside)
    tl.store(values + over, kept, mask=inside)
