"""Whoever asks a rank that runs its part of a plan hears how much has come there, and over which links."""

from __future__ import annotations

from collections import Counter

import msgspec

from ckpt_transport.execution.ledger import Ledger
from ckpt_transport.planning import StageKind
from ckpt_transport.planning.values.plan import Leg


class Arrival(msgspec.Struct, frozen=True):
    """What comes to a rank from one sender over one transport.

    Attributes:
        sender: what people call it.
        transport: its name.
        done: bytes of buckets that have come; of those that are applied there, only what has been applied.
        nbytes: bytes of all buckets that come so.
    """

    sender: str
    transport: str
    done: int
    nbytes: int


def arrivals(ledger: Ledger) -> tuple[Arrival, ...]:
    """How much has come to the rank of ``ledger`` on each leg on which it receives."""
    schedule, plan = ledger.schedule, ledger.schedule.plan
    taken = {
        event.bucket
        for event in tuple(ledger.events)
        if event.kind is StageKind.APPLY or event.bucket not in schedule.applied
    }
    done, nbytes = Counter[Leg](), Counter[Leg]()
    for step in schedule.steps:
        if step.leg is not None and step.leg.sender != schedule.rank:
            size = plan.buckets[step.bucket].nbytes
            nbytes[step.leg] += size
            done[step.leg] += size if step.bucket in taken else 0
    return tuple(
        Arrival(plan.topology.participants[leg.sender].label, plan.routes[leg.route].transport, done[leg], total)
        for leg, total in nbytes.items()
    )
