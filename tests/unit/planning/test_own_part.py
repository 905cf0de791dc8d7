"""What every member proves of its own part is enough: together they refuse each plan that would do harm."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st

from ckpt_transport.errors import BudgetError, CoverageError, PlanError
from ckpt_transport.planning import Plan, RingUse, Stages, verify_part
from tests.unit import faulty_plans as faulty
from tests.unit.any_schedule import simulate
from tests.unit.worlds import World, chained, filled, worlds

replace = msgspec.structs.replace


def verify_parts(plan: Plan) -> None:
    """Every rank proves its part."""
    for participant in plan.topology.participants:
        verify_part(plan, participant.rank, participant.budget)


@checked(max_examples=100, deadline=None)
@given(worlds())
def test_given_any_plan_that_holds_then_every_member_agrees(world: World) -> None:
    verify_parts(world.plan())


@checked(max_examples=250, deadline=None)
@given(faulty.spoilt(), st.integers(0, 2**32))
def test_given_faults_in_a_plan_then_a_member_refuses_or_they_do_no_harm(made: Plan, seed: int) -> None:
    try:
        verify_parts(made)
    except PlanError:
        return
    for nth in range(6):
        simulate(made, seed + nth)


@pytest.mark.parametrize("transport", faulty.TRANSPORTS)
def test_given_any_dependency_is_lost_then_a_member_refuses(transport: str) -> None:
    for made in faulty.each_without_a_dependency(transport):
        with pytest.raises(CoverageError):
            verify_parts(made)


def test_given_a_bucket_or_a_piece_is_left_out_then_each_sink_refuses() -> None:
    for made in (chained().plan(), filled().plan()):
        last = len(made.buckets) - 1
        shorter = replace(
            made, buckets=made.buckets[:last], stages=Stages.of(stage for stage in made.stages if stage.bucket != last)
        )
        pieces = made.buckets[last].pieces
        for wrong in (shorter, faulty.with_bucket(made, last, pieces=pieces[:-1])):
            for sink in made.topology.sinks:
                with pytest.raises(CoverageError, match="missed"):
                    verify_part(wrong, sink, 1 << 30)


def test_given_less_memory_than_the_plan_counts_on_then_that_rank_refuses() -> None:
    made = filled().plan()
    for ring in made.rings:
        verify_part(made, ring.rank, ring.nbytes)
        with pytest.raises(BudgetError, match="has a budget of"):
            verify_part(made, ring.rank, ring.nbytes - 1)


def test_given_a_bucket_that_is_larger_than_its_slot_then_those_who_receive_it_refuse() -> None:
    made = filled().plan()
    smaller = tuple(replace(ring, slot_bytes=512) if ring.use is RingUse.RECEIVE else ring for ring in made.rings)
    for sink in made.topology.sinks:
        with pytest.raises(BudgetError, match="no slot of its size"):
            verify_part(replace(made, rings=smaller), sink, 1 << 30)


def test_given_a_rank_that_is_not_there_then_it_is_refused() -> None:
    with pytest.raises(PlanError, match="no rank 7"):
        verify_part(filled().plan(), 7, 1 << 30)


@pytest.mark.parametrize("changes", [{"extent": 99}, {"extent": -1}, {"receiver_set": 99}, {"receiver_set": -1}])
def test_given_a_bucket_that_names_nothing_then_each_member_refuses_also_who_never_sees_it(
    changes: dict[str, int],
) -> None:
    made = faulty.with_bucket(chained().plan(), 0, **changes)
    for participant in made.topology.participants:
        with pytest.raises(PlanError, match="not there"):
            verify_part(made, participant.rank, participant.budget)
