"""A run of the simulator: a plan in a world, from the first fill to the last apply."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import msgspec

from ckpt_transport.checkpoint import Progress
from ckpt_transport.errors import PlanError
from ckpt_transport.execution.timeline import StageEvent
from ckpt_transport.memory import no_collections
from ckpt_transport.planning import Plan, StageKind
from ckpt_transport.simulator.activities import Activities
from ckpt_transport.simulator.bottlenecks import Bottlenecks
from ckpt_transport.simulator.events import NEVER, Clock, RankThread
from ckpt_transport.simulator.wires import Wires
from ckpt_transport.simulator.world import SimulatedWorld
from ckpt_transport.sizes import duration

SHOWN = 6
"""So many kinds of resources are told of, the slowest first."""
NUMBER = re.compile(r"[0-9]+")
AS_BUSY = 0.99
"""A thread that is as busy as a link waits for that link."""


class Death(NamedTuple):
    """A member that dies.

    Attributes:
        rank: which.
        seconds: when.
        noticed: how long its heartbeat must be silent before the others give up.
    """

    rank: int
    seconds: float
    noticed: float


class Resource(msgspec.Struct, frozen=True):
    """A link or a thread.

    Attributes:
        name: what it is called.
        busy: seconds that it needs for its part, at its full rate.
        nbytes: what has crossed it; 0 for a thread.
        alike: how many there are of its kind, of which it is the busiest.
    """

    name: str
    busy: float
    nbytes: float
    alike: int = 1


class Simulated(msgspec.Struct, frozen=True):
    """What a run has come to.

    Attributes:
        seconds: from the first fill to the last apply; where a member has died, until the others have noticed.
        complete: whether every sink has applied every bucket.
        applied: applies that have ended, of all sinks.
        applies: applies that there are.
        events: that were simulated.
        took: seconds that simulating them took.
        resources: the busiest of each kind, the busiest of all first.
        stages: seconds from the first beginning to the last end of each kind of stage.
        timeline: stages of the ranks that were asked for.
    """

    seconds: float
    complete: bool
    applied: int
    applies: int
    events: int
    took: float
    resources: tuple[Resource, ...]
    stages: dict[str, float]
    timeline: tuple[StageEvent, ...] = ()

    @property
    def slowest(self) -> str:
        """The resource that the update waits for, in words."""
        first = self.resources[0]
        return f"{first.name} is busy for {duration(first.busy)} of {duration(self.seconds)}"


def simulate(
    plan: Plan,
    world: SimulatedWorld,
    *,
    shown: Collection[int] = (),
    death: Death | None = None,
    progress: Progress | None = None,
) -> Simulated:
    """Run ``plan`` in ``world``.

    Args:
        plan: made for the world's topology.
        world: what there is.
        shown: ranks whose timeline is kept.
        death: who dies, if anybody does.
        progress: told how many events of how many have been simulated.

    Raises:
        PlanError: nobody dies, and the plan does not end.
    """
    with no_collections():
        return _simulate(plan, world, shown, death, progress)


def _simulate(
    plan: Plan, world: SimulatedWorld, shown: Collection[int], death: Death | None, progress: Progress | None
) -> Simulated:
    began = time.perf_counter()
    wires, clock = Wires(world), Clock()
    activities = Activities(plan, world, wires)
    bottlenecks = Bottlenecks(activities.all)
    clock.run(activities.all, [] if death is None else [(death.seconds, death.rank)], progress)
    bottlenecks.spread()
    applies = activities.applies
    applied = sum(1 for apply in applies if apply.ended < NEVER)
    complete = applied == len(applies)
    if death is None and not complete:
        raise PlanError(f"{len(applies) - applied} of {len(applies)} applies never begin: the plan waits for itself")
    seconds = max((apply.ended for apply in applies if apply.ended < NEVER), default=0.0)
    if death is not None and not complete:
        seconds = death.seconds + death.noticed
    return Simulated(
        seconds,
        complete,
        applied,
        len(applies),
        clock.events,
        time.perf_counter() - began,
        tuple(busiest(activities.threads.values(), wires)),
        _spans(activities),
        tuple(_timeline(activities, shown)),
    )


def busiest(threads: Iterable[RankThread], wires: Wires) -> Sequence[Resource]:
    """The busiest of each kind. A thread that is only busy because it waits for a link is none of them."""
    links = [Resource(name, link.crossed / link.rate, link.crossed) for name, link in wires.links.items()]
    longest = max((link.busy for link in links), default=0.0)
    busy = [Resource(thread.name, thread.seconds, 0.0) for thread in threads]
    kinds: defaultdict[str, list[Resource]] = defaultdict(list)
    for each in [*links, *(thread for thread in busy if thread.busy * AS_BUSY > longest)]:
        if each.busy:
            kinds[NUMBER.sub("", each.name)].append(each)
    found = [
        msgspec.structs.replace(max(alike, key=lambda each: each.busy), alike=len(alike)) for alike in kinds.values()
    ]
    return sorted(found, key=lambda each: -each.busy)[:SHOWN]


def _spans(activities: Activities) -> dict[str, float]:
    first = dict.fromkeys(StageKind, NEVER)
    last = dict.fromkeys(StageKind, 0.0)
    for kind, _, began, ends in activities.stages:
        first[kind] = min(first[kind], *(activity.began for activity in began.values()))
        last[kind] = max(last[kind], *(activity.ended for activity in ends.values() if activity.ended < NEVER), 0.0)
    return {kind.name.lower(): last[kind] - first[kind] for kind in StageKind if first[kind] < NEVER}


def _timeline(activities: Activities, shown: Collection[int]) -> Sequence[StageEvent]:
    found: list[StageEvent] = []
    for kind, bucket, began, ends in activities.stages:
        found += (
            StageEvent(rank, kind, bucket, began[rank].began, ends[rank].ended)
            for rank in shown
            if rank in ends and ends[rank].ended < NEVER
        )
    return found
