"""The sections of encoded bytes: where each lies.

===== ======================================================= ===================== ==============
form  first                                                   then                  last
===== ======================================================= ===================== ==============
list  how many units of each block are carried, as uint32     places, as uint16     their values
mask  a bit for each unit, the lowest bit of a byte first                           their values
whole                                                                               all values
===== ======================================================= ===================== ==============

A block is 65,536 units, and a place counts units from the start of its block. Sections begin at multiples of 8 bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ckpt_transport.planning import DeltaForm

BLOCK_UNITS = 1 << 16
ALIGNMENT = 8
UNIT_DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""As what type units of so many bytes are read."""


class Sections(NamedTuple):
    """Where the sections of one carrier begin; one that its form has not is empty. The first begins at 0.

    Attributes:
        places: the offset of the second.
        values: of the last.
        end: how many bytes there are.
    """

    places: int
    values: int
    end: int


def sections(form: DeltaForm, unit: int, units: int, count: int) -> Sections:
    """The sections of ``count`` elements in a range of so many units."""
    match form:
        case DeltaForm.LIST:
            places = _aligned(4 * block_count(units))
            values = _aligned(places + 2 * count)
        case DeltaForm.MASK:
            places = values = _aligned(-(-units // 8))
        case DeltaForm.WHOLE:
            places = values = 0
    return Sections(places, values, values + unit * count)


def densest(unit: int, units: int, count: int) -> DeltaForm:
    """The form that takes the fewest bytes for ``count`` elements that differ."""
    carried = {DeltaForm.LIST: count, DeltaForm.MASK: count, DeltaForm.WHOLE: units}
    return min(carried, key=lambda form: sections(form, unit, units, carried[form]).end)


def block_count(units: int) -> int:
    return -(-units // BLOCK_UNITS)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
