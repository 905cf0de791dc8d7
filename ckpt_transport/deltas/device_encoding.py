"""A GPU finds what differs in many ranges by two launches, between which the host learns how much it is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate

import numpy as np
import torch

from ckpt_transport.deltas.encoded import Encoded
from ckpt_transport.deltas.encoded_layout import EncodedLayout, lay_out_encoded
from ckpt_transport.deltas.sections import BLOCK_UNITS, block_count
from ckpt_transport.memory import Launch
from ckpt_transport.memory.table import put, record_use
from ckpt_transport.planning import DeltaForm

WARPS = 8
BLOCK_BYTES = BLOCK_UNITS // 8
"""Of the marks of a block."""
WIDEST = 16
"""Bytes that a thread reads at a time, where they begin at a multiple of that."""
STEP_BYTES = 32 * WARPS * WIDEST
"""Bytes of either version that a program looks at at a time."""


def encode_by_kernels(
    base: Sequence[torch.Tensor], new: Sequence[torch.Tensor], unit: int, most: int
) -> list[Encoded] | None:
    """Encode ranges as :func:`ckpt_transport.deltas.encode` does, on the current device; None beyond ``most`` bytes.

    It waits until differences are counted. All that is encoded lies in one memory.
    """
    pairs = [tuple(_aligned(each, unit) for each in pair) for pair in zip(base, new, strict=True)]
    device = new[0].device
    units = [now.numel() // unit for _, now in pairs]
    blocks = [block_count(each) for each in units]
    first, total = [0, *accumulate(blocks)][:-1], sum(blocks)
    if not total:
        return [Encoded.nothing(device) for _ in pairs]
    starts = [[old.data_ptr(), now.data_ptr()] for old, now in pairs]
    alignment = WIDEST if not any(start % WIDEST for pair in starts for start in pair) else unit
    rows = [[*pair, *rest] for pair, *rest in zip(starts, units, first, strict=True)]
    range_of = put(np.repeat(np.arange(len(blocks)), blocks), device)
    marks = torch.empty(total * BLOCK_BYTES, dtype=torch.uint8, device=device)
    counts = torch.empty(total, dtype=torch.int32, device=device)
    table = put(np.array(rows, np.int64), device)
    _marking(device, unit, alignment)(total, table, range_of, marks, counts)
    record_use(table, range_of)
    upto = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    edges = upto[[*first, total]].tolist()
    layout = lay_out_encoded(unit, units, np.diff(edges).tolist())
    if layout[-1].start + layout[-1].at.end > most:
        return None
    raw = torch.zeros(layout[-1].start + layout[-1].at.end, dtype=torch.uint8, device=device)
    rows = [
        [now.data_ptr(), begin, *_targets(raw.data_ptr() + each.start, each)]
        for (_, now), begin, each in zip(pairs, first, layout, strict=True)
    ]
    firsts = upto[:-1] - upto[first][range_of]
    table = put(np.array(rows, np.int64), device)
    _writing(device, unit)(total, table, range_of, marks.view(torch.int32), counts, firsts)
    record_use(table, range_of)
    found: list[Encoded] = []
    for (_, now), begin, each, size in zip(pairs, first, layout, units, strict=True):
        part = raw[each.start : each.start + each.at.end]
        if each.elements and each.form is DeltaForm.MASK:
            bits = -(-size // 8)
            part[:bits].copy_(marks[begin * BLOCK_BYTES :][:bits])
        elif each.elements and each.form is DeltaForm.WHOLE:
            part.copy_(now)
        found.append(Encoded(each.form, each.elements, part) if each.elements else Encoded.nothing(device))
    return found


def _targets(start: int, each: EncodedLayout) -> tuple[int, int, int]:
    """Where a program writes counts, places and values, if it does."""
    if not each.elements or each.form is DeltaForm.WHOLE:
        return 0, 0, 0
    listed = each.form is DeltaForm.LIST
    return listed * start, listed * (start + each.at.places), start + each.at.values


def _aligned(raw: torch.Tensor, unit: int) -> torch.Tensor:
    return raw if raw.data_ptr() % unit == 0 else raw.clone()


@cache
def _marking(device: torch.device, unit: int, alignment: int) -> Launch:
    """The kernel as it is compiled for one device and size of units. It can be imported only where Triton is."""
    from ckpt_transport.deltas.encoding_kernels import mark_differing

    constants = {"UNIT": _type_of(unit), "ALIGNMENT": alignment, "BLOCK_UNITS": BLOCK_UNITS}
    return Launch(mark_differing, WARPS, **constants, STEP=STEP_BYTES // unit)


@cache
def _writing(device: torch.device, unit: int) -> Launch:
    """The same of the other one."""
    from ckpt_transport.deltas.encoding_kernels import write_differing

    return Launch(write_differing, WARPS, UNIT=_type_of(unit), BLOCK_UNITS=BLOCK_UNITS)


def _type_of(unit: int) -> object:
    import triton.language as tl

    return {1: tl.uint8, 2: tl.int16, 4: tl.int32, 8: tl.int64}[unit]
