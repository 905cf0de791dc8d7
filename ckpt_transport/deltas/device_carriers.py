"""Carriers in a GPU's memory are located in a few launches, however many there are, and the host waits once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.deltas.carrier_table import CarrierTable, Group
from ckpt_transport.deltas.elements import Elements
from ckpt_transport.deltas.lies import wrong_counts, wrong_mask, wrong_places
from ckpt_transport.deltas.sections import BLOCK_UNITS, UNIT_DTYPES
from ckpt_transport.errors import PlanMismatchError
from ckpt_transport.memory import Launch
from ckpt_transport.planning import Carrier, DeltaForm

WARPS = 4
STEP = 512
"""Elements, or units, that a program looks at at a time."""
WORD_BITS = 32
WINDOW_BITS = 1 << 29
"""So many units are marked at a time."""
LIES = 3
"""Numbers for each carrier: whether counts or a mask are wrong, places are, others have the same."""


def locate_on_device(
    groups: Sequence[Group], raw: Mapping[str, torch.Tensor], bases: torch.Tensor
) -> dict[int, Elements]:
    """Find where the elements of carriers go, by their size. Those that nobody serves are left out.

    It takes memory in proportion to the bytes that are there, whatever carriers claim.

    Args:
        groups: the carriers of each range, with what knows where elements go.
        raw: the bytes of each, by name. They are read on the current stream.
        bases: the address of each served tensor; int64, on the device.

    Raises:
        CheckpointError: the bytes are not what they claim to be.
        PlanMismatchError: two carry the same element.
    """
    by_unit: defaultdict[int, list[Group]] = defaultdict(list)
    for known, carriers in groups:
        by_unit[carriers[0].unit].append((known, carriers))
    with _current(bases.device):
        return {unit: _located(unit, some, raw, bases) for unit, some in by_unit.items()}


def _located(unit: int, groups: Sequence[Group], raw: Mapping[str, torch.Tensor], bases: torch.Tensor) -> Elements:
    device = bases.device
    table = CarrierTable.of(groups, raw, device)
    blocks, parts = len(table.carrier_of), len(table.part_of)
    lies = torch.zeros(LIES * len(table.carriers), dtype=torch.int64, device=device)
    carried = torch.empty(blocks, dtype=torch.int32, device=device)
    located = torch.empty(parts, dtype=torch.int32, device=device)
    count_carried, count_located, write_located, _ = _kernels_of(device, unit)
    count_carried(blocks, table.carriers, table.carrier_of, carried, lies)
    edges = _edges(carried)
    count_located(parts, table.carriers, table.parts, table.part_of, edges, located, lies, unit)
    upto = _edges(located)
    if table.marks:
        _mark(table, edges, lies, unit)
    *told, total = torch.cat([lies, upto[-1:]]).tolist()
    _check(table.groups, np.array(told).reshape(-1, LIES) > 0)
    addresses = torch.empty(total, dtype=torch.int64, device=device)
    values = torch.empty(total, dtype=UNIT_DTYPES[unit], device=device)
    if total:
        write_located(parts, table.carriers, table.parts, table.part_of, edges, upto, bases, addresses, values)
        table.record_use()
    return Elements(addresses, values)


def _edges(counts: torch.Tensor) -> torch.Tensor:
    """With which number each begins, and where the last one ends."""
    edges = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=edges[1:])
    return edges


def _mark(table: CarrierTable, edges: torch.Tensor, lies: torch.Tensor, unit: int) -> None:
    """Find elements that two carriers of one range have, some ranges at a time."""
    mark_carried = _kernels_of(lies.device, unit)[-1]
    window = min(table.marks, WINDOW_BITS) // WORD_BITS
    marks = torch.empty(window, dtype=torch.int32, device=lies.device)
    units = np.array([carrier.nbytes // unit for group in table.groups for carrier in group], np.int64)
    for first in range(0, table.marks, WINDOW_BITS):
        marks.zero_()
        near = np.flatnonzero((table.bits < first + WINDOW_BITS) & (table.bits + units > first))
        begin, end = int(table.firsts[near[0]]), int(table.firsts[near[-1] + 1])
        mark_carried(end - begin, table.carriers, table.carrier_of, edges, marks, lies, begin, first, window)


def _check(groups: Sequence[Sequence[Carrier]], lies: npt.NDArray[np.bool_]) -> None:
    number = 0
    for group in groups:
        for carrier, (counts, places, _) in zip(group, lies[number:], strict=False):
            units = carrier.nbytes // carrier.unit
            if counts:
                masked = carrier.form is DeltaForm.MASK
                raise wrong_mask(units, carrier.count) if masked else wrong_counts(carrier.count)
            if places:
                raise wrong_places(units)
        if lies[number : number + len(group), -1].any():
            raise PlanMismatchError(f"{' and '.join(sorted(each.name for each in group))} carry one element twice")
        number += len(group)


@cache
def _kernels_of(device: torch.device, unit: int) -> tuple[Launch, Launch, Launch, Launch]:
    """Kernels as they are compiled for one device and size of units. They can be imported only where Triton is."""
    import triton.language as tl

    from ckpt_transport.deltas import locating_kernels as kernels

    types = {1: tl.uint8, 2: tl.int16, 4: tl.int32, 8: tl.int64}
    return (
        Launch(kernels.count_carried, WARPS, BLOCK_UNITS=BLOCK_UNITS),
        Launch(kernels.count_located, WARPS, BLOCK_UNITS=BLOCK_UNITS, STEP=STEP),
        Launch(kernels.write_located, WARPS, TYPE=types[unit], UNIT=unit, BLOCK_UNITS=BLOCK_UNITS, STEP=STEP),
        Launch(kernels.mark_carried, WARPS, BLOCK_UNITS=BLOCK_UNITS, STEP=STEP),
    )


def _current(device: torch.device) -> AbstractContextManager[object]:
    """What makes a GPU the current one; a device of the interpreter's is none."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
