"""Elements of one range may come in several carriers, for those who serve them: a sink merges them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from ckpt_transport.deltas.carriers import DeltaRange
from ckpt_transport.deltas.decoding import decode
from ckpt_transport.errors import PlanMismatchError
from ckpt_transport.planning import Carrier


def of_one_range(carriers: Sequence[Carrier]) -> Iterator[list[Carrier]]:
    """Carriers of which the ranges lie over each other, together; ascending.

    Raises:
        PlanMismatchError: these have elements of other sizes, or one does not begin at an element.
    """
    group: list[Carrier] = []
    end = 0
    for carrier in sorted(carriers, key=lambda each: (each.extent, each.offset)):
        if carrier.offset % carrier.unit:
            raise PlanMismatchError(f"{carrier.name} begins within an element")
        if group and not (carrier.extent == group[0].extent and carrier.offset < end):
            yield group
            group, end = [], 0
        if group and carrier.unit != group[0].unit:
            raise PlanMismatchError(f"{group[0].name} and {carrier.name} carry elements of one range")
        group.append(carrier)
        end = max(end, carrier.offset + carrier.nbytes)
    if group:
        yield group


def carried(
    carriers: Sequence[Carrier], raw: Mapping[str, torch.Tensor]
) -> tuple[DeltaRange, torch.Tensor, torch.Tensor]:
    """The elements of carriers of one range.

    Args:
        carriers: one at least.
        raw: the bytes of each, by name.

    Returns: the range, the position of each element's first byte in the extent, ascending, and what they become.

    Raises:
        CheckpointError: the bytes are not what they claim to be.
        PlanMismatchError: two carry the same element.
    """
    extent, unit = carriers[0].extent, carriers[0].unit
    low = min(carrier.offset for carrier in carriers)
    high = max(carrier.offset + carrier.nbytes for carrier in carriers)
    decoded = [decode(raw[each.name], each.form, unit, each.nbytes, each.count) for each in carriers]
    positions = torch.cat([found.places * unit + each.offset for each, found in zip(carriers, decoded, strict=True)])
    values = torch.cat([found.values for found in decoded])
    if len(carriers) > 1:
        positions, order = positions.sort()
        values = values[order]
        if bool((positions[1:] == positions[:-1]).any()):
            names = " and ".join(sorted(carrier.name for carrier in carriers))
            raise PlanMismatchError(f"{names} carry one element twice")
    return DeltaRange(extent, low, high - low, unit), positions, values
