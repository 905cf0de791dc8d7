"""Carriers in host memory are located without looking at single elements where they lie one behind the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ckpt_transport.deltas.all_cores import by_all_cores
from ckpt_transport.deltas.carried_blocks import CarriedBlocks
from ckpt_transport.deltas.copied_rows import Numbers
from ckpt_transport.deltas.element_map import ElementMap
from ckpt_transport.deltas.host_elements import HostElements
from ckpt_transport.deltas.sections import BLOCK_UNITS, block_count
from ckpt_transport.errors import PlanMismatchError
from ckpt_transport.planning import Carrier

WINDOW = 1 << 20
"""In so many units at a time it is looked for elements that two carriers have; a byte for each stays in the cache."""


def locate_on_host(
    carriers: Sequence[Carrier], raw: Mapping[str, torch.Tensor], known: ElementMap, bases: Numbers
) -> list[HostElements]:
    """Find where the elements of carriers of one range go.

    Args:
        carriers: one at least.
        raw: the bytes of each, by name. Values are used where they are.
        known: knows where elements go.
        bases: the address of each served tensor.

    Raises:
        CheckpointError: the bytes are not what they claim to be.
        PlanMismatchError: two carry the same element.
    """
    read = [CarriedBlocks(raw[each.name], each.form, each.unit, each.nbytes, each.count) for each in carriers]
    if len(carriers) > 1:
        _check_apart(carriers, read)
    work = [(each, of, group) for each, of in zip(carriers, read, strict=True) for group in of.groups()]

    def locate(part: tuple[Carrier, CarriedBlocks, tuple[int, int]]) -> list[HostElements]:
        carrier, blocks, group = part
        return known.locate_on_host(carrier, blocks.read(*group), bases)

    return [part for parts in by_all_cores(locate, work) for part in parts]


def _check_apart(carriers: Sequence[Carrier], read: Sequence[CarriedBlocks]) -> None:
    """Check that no element is in two of them."""
    unit = carriers[0].unit
    low = min(carrier.offset for carrier in carriers)
    units = (max(carrier.offset + carrier.nbytes for carrier in carriers) - low) // unit
    shifts = [(carrier.offset - low) // unit for carrier in carriers]

    def is_apart(start: int) -> bool:
        found = [
            _within(blocks, start - shift, carrier.nbytes // unit)
            for carrier, blocks, shift in zip(carriers, read, shifts, strict=True)
        ]
        held = [places for places in found if len(places)]
        if len(held) < 2:
            return True
        taken = np.zeros(WINDOW, np.bool_)
        for places in held:
            taken[places] = True
        return int(np.count_nonzero(taken)) == sum(map(len, held))

    if not all(by_all_cores(is_apart, range(0, units, WINDOW))):
        names = " and ".join(sorted(carrier.name for carrier in carriers))
        raise PlanMismatchError(f"{names} carry one element twice")


def _within(blocks: CarriedBlocks, start: int, units: int) -> Numbers:
    """The elements of a window that begins at a unit of a range of so many, counted from there."""
    first, last = max(start, 0) // BLOCK_UNITS, block_count(min(max(start + WINDOW, 0), units))
    if first >= last or blocks.edges[first] == blocks.edges[last]:
        return np.empty(0, np.int64)
    some = blocks.read(first, last)
    places = some.places.astype(np.int64) + (some.first - start)
    return places[(places >= 0) & (places < WINDOW)]
