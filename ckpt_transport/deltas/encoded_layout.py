"""Ranges that are encoded together lie in one memory, one behind the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ckpt_transport.deltas.sections import Sections, densest, sections
from ckpt_transport.planning import DeltaForm

RANGE_ALIGNMENT = 256
"""Of what is encoded, so that the next range's can follow it."""


class EncodedLayout(NamedTuple):
    """How one range is encoded, and where in the memory of all."""

    form: DeltaForm
    elements: int
    at: Sections
    start: int


def lay_out_encoded(unit: int, units: Sequence[int], counts: Sequence[int]) -> list[EncodedLayout]:
    """One behind the other. A range in which nothing differs takes nothing."""
    found: list[EncodedLayout] = []
    start = 0
    for size, differing in zip(units, counts, strict=True):
        form = densest(unit, size, differing) if differing else DeltaForm.LIST
        count = size if form is DeltaForm.WHOLE else differing
        at = sections(form, unit, size, count) if count else Sections(0, 0, 0)
        found.append(EncodedLayout(form, count, at, start))
        start += -(-at.end // RANGE_ALIGNMENT) * RANGE_ALIGNMENT
    return found
