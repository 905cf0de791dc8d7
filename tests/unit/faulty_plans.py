"""Plans with faults: what a test can do to a plan, and what chance can."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import msgspec
from hypothesis import strategies as st

from ckpt_transport.planning import Plan, Stage, Stages
from ckpt_transport.planning.values.plan import IN_PLACE, Hop
from tests.unit.worlds import chained, filled, worlds

replace = msgspec.structs.replace
TRANSPORTS = ("wire", "wire+window", "read+post", "screen", "read-chain", "read-chain+window")
"""Plans of every kind."""


def with_stages(plan: Plan, stages: Sequence[Stage]) -> Plan:
    return replace(plan, stages=Stages.of(stages))


def with_stage(plan: Plan, number: int, **changes: object) -> Plan:
    stages = list(plan.stages)
    stages[number] = replace(stages[number], **changes)
    return with_stages(plan, stages)


def without_stage(plan: Plan, number: int) -> Plan:
    """One stage less; what waited for it does not, and the others keep their neighbours."""
    return with_stages(
        plan,
        [
            replace(stage, after=tuple(n - (n > number) for n in stage.after if n != number))
            for position, stage in enumerate(plan.stages)
            if position != number
        ],
    )


def reordered(plan: Plan, order: Sequence[int]) -> Plan:
    """The same stages with the same dependencies, in another order."""
    position = {number: place for place, number in enumerate(order)}
    return with_stages(
        plan,
        [
            replace(
                plan.stages[number], after=tuple(sorted(position[earlier] for earlier in plan.stages[number].after))
            )
            for number in order
        ],
    )


def forgetful(plan: Plan, order: Sequence[int]) -> Plan:
    """As :func:`reordered`, without the dependencies on what is now later."""
    made = reordered(plan, order)
    return with_stages(
        made,
        [
            replace(stage, after=tuple(earlier for earlier in stage.after if earlier < number))
            for number, stage in enumerate(made.stages)
        ],
    )


def with_bucket(plan: Plan, number: int, **changes: object) -> Plan:
    buckets = list(plan.buckets)
    buckets[number] = replace(buckets[number], **changes)
    return replace(plan, buckets=tuple(buckets))


def with_piece(plan: Plan, number: int, index: int, **changes: object) -> Plan:
    pieces = list(plan.buckets[number].pieces)
    pieces[index] = replace(pieces[index], **changes)
    return with_bucket(plan, number, pieces=tuple(pieces))


def with_leg(plan: Plan, hop: int, index: int, **changes: object) -> Plan:
    hops, legs = list(plan.hops), list(plan.hops[hop].legs)
    legs[index] = replace(legs[index], **changes)
    hops[hop] = Hop(tuple(legs))
    return replace(plan, hops=tuple(hops))


def with_ring(plan: Plan, index: int, **changes: object) -> Plan:
    rings = list(plan.rings)
    rings[index] = replace(rings[index], **changes)
    return replace(plan, rings=tuple(rings))


FAULTS: list[Callable[[Plan, random.Random], Plan]] = []


def fault(make: Callable[[Plan, random.Random], Plan]) -> Callable[[Plan, random.Random], Plan]:
    FAULTS.append(make)
    return make


@st.composite
def spoilt(draw: st.DrawFn) -> Plan:
    """Any plan, with one to three faults of any kind."""
    made = draw(worlds()).plan()
    for make, chance in draw(
        st.lists(st.tuples(st.sampled_from(FAULTS), st.integers(0, 2**32)), min_size=1, max_size=3)
    ):
        made = make(made, random.Random(chance))
    return made


def each_without_a_dependency(transport: str) -> Iterator[Plan]:
    """Two plans, again and again, each time without another one of their dependencies."""
    for made in (chained(transport).plan(), filled().plan()):
        for number, stage in enumerate(made.stages):
            for lost in stage.after:
                yield with_stage(made, number, after=tuple(earlier for earlier in stage.after if earlier != lost))


def any_stage(plan: Plan, chance: random.Random) -> int:
    return chance.randrange(len(plan.stages))


@fault
def lose_a_dependency(plan: Plan, chance: random.Random) -> Plan:
    number = any_stage(plan, chance)
    after = list(plan.stages[number].after)
    if after:
        after.remove(chance.choice(after))
    return with_stage(plan, number, after=tuple(after))


@fault
def invent_a_dependency(plan: Plan, chance: random.Random) -> Plan:
    number = any_stage(plan, chance)
    earlier = chance.randrange(number) if number else 0
    return with_stage(plan, number, after=tuple(sorted({*plan.stages[number].after, earlier} - {number})))


@fault
def swap_stages(plan: Plan, chance: random.Random) -> Plan:
    order = list(range(len(plan.stages)))
    one, other = any_stage(plan, chance), any_stage(plan, chance)
    order[one], order[other] = order[other], order[one]
    return chance.choice([reordered, forgetful])(plan, order)


@fault
def move_a_stage(plan: Plan, chance: random.Random) -> Plan:
    order = list(range(len(plan.stages)))
    order.insert(any_stage(plan, chance), order.pop(any_stage(plan, chance)))
    return chance.choice([reordered, forgetful])(plan, order)


@fault
def drop_a_stage(plan: Plan, chance: random.Random) -> Plan:
    return without_stage(plan, any_stage(plan, chance)) if len(plan.stages) > 1 else plan


@fault
def use_another_slot(plan: Plan, chance: random.Random) -> Plan:
    number = chance.randrange(len(plan.buckets))
    field = chance.choice(["slot", "fill_slot"])
    return with_bucket(plan, number, **{field: chance.choice([IN_PLACE, 0, 1, 2])})


@fault
def swap_slots(plan: Plan, chance: random.Random) -> Plan:
    one, other = (chance.randrange(len(plan.buckets)) for _ in "ab")
    slots = plan.buckets[one].slot, plan.buckets[other].slot
    return with_bucket(with_bucket(plan, one, slot=slots[1]), other, slot=slots[0])


@fault
def take_another_hop(plan: Plan, chance: random.Random) -> Plan:
    return with_stage(plan, any_stage(plan, chance), hop=chance.randrange(len(plan.hops)))


@fault
def map_or_unmap_a_route(plan: Plan, chance: random.Random) -> Plan:
    routes = list(plan.routes)
    number = chance.randrange(len(routes))
    routes[number] = replace(routes[number], maps_memory=not routes[number].maps_memory)
    return replace(plan, routes=tuple(routes))


@fault
def resize_a_ring(plan: Plan, chance: random.Random) -> Plan:
    if not plan.rings:
        return plan
    changes = chance.choice([{"depth": chance.randrange(1, 4)}, {"slot_bytes": 256 * chance.randrange(1, 20)}])
    return with_ring(plan, chance.randrange(len(plan.rings)), **changes)


@fault
def shift_a_piece(plan: Plan, chance: random.Random) -> Plan:
    number = chance.randrange(len(plan.buckets))
    index = chance.randrange(len(plan.buckets[number].pieces))
    field = chance.choice(["tensor", "tensor_offset", "bucket_offset", "nbytes"])
    piece = plan.buckets[number].pieces[index]
    return with_piece(plan, number, index, **{field: getattr(piece, field) + chance.choice([-256, -1, 1, 256])})


@fault
def shift_a_bucket(plan: Plan, chance: random.Random) -> Plan:
    number = chance.randrange(len(plan.buckets))
    by = chance.choice([-256, 256])
    bucket = plan.buckets[number]
    pieces = tuple(replace(piece, bucket_offset=piece.bucket_offset - by) for piece in bucket.pieces)
    return with_bucket(plan, number, offset=bucket.offset + by, nbytes=bucket.nbytes - by, pieces=pieces)


@fault
def shift_a_run(plan: Plan, chance: random.Random) -> Plan:
    """An owner is said to have other bytes of a tensor."""
    tensors = list(plan.manifest.tensors)
    number = chance.randrange(len(tensors))
    field = chance.choice(["start", "offset", "nbytes", "extent"])
    value = getattr(tensors[number], field) + chance.choice([-256, -1, 1, 256])
    tensors[number] = replace(
        tensors[number], **{field: value % len(plan.manifest.extents) if field == "extent" else value}
    )
    return replace(plan, manifest=replace(plan.manifest, tensors=tuple(tensors)))


@fault
def swap_receivers(plan: Plan, chance: random.Random) -> Plan:
    """Two ranks change places in all that they receive; what they pass on stays as it was."""
    one, other = (chance.choice(plan.topology.sinks) for _ in "ab")
    places = {one: other, other: one}
    routes = list(plan.routes)
    hops = []
    for hop in plan.hops:
        legs = [replace(leg, receivers=tuple(places.get(rank, rank) for rank in leg.receivers)) for leg in hop.legs]
        for leg in legs:
            routes[leg.route] = replace(routes[leg.route], ranks=(leg.sender, *leg.receivers))
        hops.append(Hop(tuple(legs)))
    return replace(plan, hops=tuple(hops), routes=tuple(routes))
