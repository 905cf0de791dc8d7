"""Elements of one range may come in several carriers, for those who serve them: a sink takes these together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
