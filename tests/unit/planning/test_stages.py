"""Stages that are kept as patterns are the stages that one would write out, one by one."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import settings as checked

from ckpt_transport.planning import Plan, Stage, StageKind, Stages
from ckpt_transport.planning.values.plan import IN_PLACE
from tests.unit.faulty_plans import TRANSPORTS
from tests.unit.worlds import World, chained, filled, worlds


def written_out(plan: Plan) -> list[Stage]:
    """The stages of a plan's buckets, made one by one, rank by rank, from nothing but buckets, hops and routes.

    The hops of a bucket are those that its transfers name.
    """
    ways: defaultdict[int, list[int]] = defaultdict(list)
    for stage in plan.stages:
        if stage.kind is StageKind.TRANSFER:
            ways[stage.bucket].append(stage.hop)
    stages: list[Stage] = []
    filled_at: dict[tuple[int, int], int] = {}
    read_by: dict[tuple[int, int], list[int]] = {}
    for number, bucket in enumerate(plan.buckets):
        slot = plan.owner(bucket), bucket.fill_slot
        before: list[int] = []
        if bucket.fill_slot != IN_PLACE:
            stages.append(Stage(StageKind.FILL, number, -1, (filled_at[slot],) if slot in filled_at else ()))
            before = [len(stages) - 1]
            filled_at[slot] = len(stages)
        sends: defaultdict[int, list[int]] = defaultdict(list)
        lands: list[int] = []
        transfers: list[int] = []
        for hop in ways[number]:
            legs = plan.hops[hop].legs
            written = [rank for leg in legs if not plan.routes[leg.route].maps_memory for rank in leg.receivers]
            readers = {stage for rank in written for stage in read_by.get((rank, bucket.slot), ())}
            stages.append(Stage(StageKind.TRANSFER, number, hop, tuple(sorted({*before, *readers}))))
            before = [len(stages) - 1]
            transfers += before
            lands += written
            for leg in legs:
                sends[leg.sender] += before
        stages.append(Stage(StageKind.APPLY, number, -1, tuple(transfers)))
        for rank in lands:
            read_by[rank, bucket.slot] = [*sends[rank], len(stages) - 1]
    return stages


@checked(max_examples=200, deadline=None)
@given(worlds())
def test_given_any_plan_then_its_patterns_stand_for_the_stages_that_one_would_write_out(world: World) -> None:
    made = world.plan()
    assert list(made.stages) == written_out(made)


@checked(max_examples=100, deadline=None)
@given(worlds())
def test_given_stages_that_are_written_out_when_they_are_packed_then_they_are_the_same(world: World) -> None:
    stages = list(world.plan().stages)
    packed = Stages.of(stages)
    assert list(packed) == stages
    assert len(packed) == len(stages)
    assert [packed[number] for number in range(len(stages))] == stages
    assert packed[1:-1] == tuple(stages[1:-1])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_given_a_long_version_then_its_plan_has_few_patterns(transport: str) -> None:
    made = chained(transport, bucket_bytes=256).plan()
    assert len(made.stages.patterns) < len(made.stages.blocks)
    assert len(filled().plan().stages.patterns) == 2


@pytest.mark.parametrize("after", [(5,), (6,), (10**6,), (-1,)])
def test_given_a_stage_that_waits_for_none_that_there_is_when_it_is_packed_then_that_is_kept(after: tuple[int]) -> None:
    stages = list(filled().plan().stages)
    stages[5] = Stage(stages[5].kind, stages[5].bucket, stages[5].hop, after)
    assert Stages.of(stages)[5].after == after
