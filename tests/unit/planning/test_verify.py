"""The verifier finds every fault that can be put into a plan, and what it lets pass runs, whatever the schedule."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st

from ckpt_transport.errors import BudgetError, CoverageError, PlanError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import Bucket, Plan, Ring, RingUse, Settings, StageKind, Stages, verify
from ckpt_transport.planning.values.plan import IN_PLACE, Leg, Piece
from tests.unit.any_schedule import Corruption, Deadlock, simulate
from tests.unit.faulty_plans import (
    TRANSPORTS,
    each_without_a_dependency,
    forgetful,
    reordered,
    spoilt,
    with_bucket,
    with_leg,
    with_piece,
    with_ring,
    with_stage,
    with_stages,
    without_stage,
)
from tests.unit.worlds import INVENTED, World, chained, filled, manifest, topology, worlds

replace = msgspec.structs.replace
FILL, TRANSFER, APPLY = StageKind.FILL, StageKind.TRANSFER, StageKind.APPLY


def first(plan: Plan, kind: StageKind, nth: int = 0) -> int:
    return [number for number, stage in enumerate(plan.stages) if stage.kind is kind][nth]


# -- what it lets pass runs --------------------------------------------------------------------------------------------


@checked(max_examples=150, deadline=None)
@given(worlds(), st.integers(0, 2**32))
def test_given_any_plan_then_every_sink_gets_every_byte_once_whatever_the_schedule(world: World, seed: int) -> None:
    made = world.plan()
    verify(made)
    for nth in range(3):
        simulate(made, seed + nth)


@pytest.mark.parametrize(
    "transport", ["wire", "read", "screen", "wire+window", "read+post", "wire+post", "read+window"]
)
@pytest.mark.parametrize("ring_depth", [1, 3])
def test_given_relays_and_two_sources_then_forty_schedules_end_well(transport: str, ring_depth: int) -> None:
    made = chained(transport, ring_depth=ring_depth).plan()
    verify(made)
    for seed in range(40):
        simulate(made, seed)


@checked(max_examples=400, deadline=None)
@given(spoilt(), st.integers(0, 2**32))
def test_given_faults_in_a_plan_then_it_is_refused_or_does_no_harm(made: Plan, seed: int) -> None:
    """The verifier is sound: whatever it lets pass runs to the right end under every schedule that was tried."""
    try:
        verify(made)
    except PlanError:
        return
    for nth in range(8):
        simulate(made, seed + nth)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_given_any_dependency_is_lost_then_the_plan_is_refused(transport: str) -> None:
    """No dependency of a plan is there for nothing, and none can be left out unnoticed."""
    verify(chained(transport).plan())
    verify(filled().plan())
    for made in each_without_a_dependency(transport):
        with pytest.raises(CoverageError):
            verify(made)


# -- what it refuses ---------------------------------------------------------------------------------------------------


def test_given_a_piece_is_dropped_then_the_missing_bytes_are_named() -> None:
    made = chained().plan()
    for number, bucket in enumerate(made.buckets):
        for index in range(len(bucket.pieces)):
            with pytest.raises(CoverageError, match="missed"):
                verify(with_bucket(made, number, pieces=bucket.pieces[:index] + bucket.pieces[index + 1 :]))


def test_given_a_piece_is_there_twice_then_it_is_refused_even_if_it_is_empty() -> None:
    made = chained().plan()
    seen = set()
    for number, bucket in enumerate(made.buckets):
        for piece in bucket.pieces:
            seen.add(piece.nbytes)
            with pytest.raises(CoverageError, match=r"move twice|one of them is empty"):
                verify(with_bucket(made, number, pieces=(*bucket.pieces, piece)))
    assert 0 in seen


@pytest.mark.parametrize(
    "changes",
    [
        {"tensor_offset": 1},
        {"tensor_offset": -1, "bucket_offset": -1},
        {"tensor_offset": 1, "bucket_offset": 1},
        {"bucket_offset": 1},
        {"bucket_offset": -256},
        {"nbytes": 1 << 20},
        {"nbytes": -1},
        {"tensor": 99},
        {"tensor": -1},
        {"tensor": 2},
    ],
)
def test_given_a_piece_that_lies_elsewhere_then_it_is_refused(changes: dict[str, int]) -> None:
    made = chained().plan()
    assert made.buckets[0].pieces[0] == Piece(0, 0, 0, 700)
    with pytest.raises(PlanError):
        verify(with_piece(made, 0, 0, **changes))


def test_given_loose_tensors_that_are_sent_from_where_they_lie_then_it_is_refused() -> None:
    made = chained().plan()
    scattered = tuple(replace(extent, kind=MemoryKind.SCATTERED) for extent in made.manifest.extents)
    with pytest.raises(CoverageError, match="these lie apart"):
        verify(replace(made, manifest=replace(made.manifest, extents=scattered)))


def test_given_bytes_before_the_bucket_or_the_extent_then_they_are_refused() -> None:
    """All offsets agree with each other; only they reach outside, where nothing moves."""
    made = chained("wire", bucket_bytes=3072).plan()
    assert [(bucket.offset, bucket.nbytes) for bucket in made.buckets] == [(0, 2500), (0, 3029), (2304, 1136)]
    with pytest.raises(CoverageError, match="does not lie over"):
        verify(shift(made, 2, 256))
    with pytest.raises(PlanError, match="outside its extent"):
        verify(shift(made, 0, -256))
    with pytest.raises(PlanError, match="no multiple of 256"):
        verify(shift(made, 2, -8))
    with pytest.raises(PlanError, match="outside its extent"):
        verify(with_bucket(made, 2, nbytes=1137))
    with pytest.raises(PlanError, match="outside its extent"):
        verify(with_bucket(made, 2, extent=2))


def shift(plan: Plan, number: int, by: int) -> Plan:
    bucket = plan.buckets[number]
    pieces = tuple(replace(piece, bucket_offset=piece.bucket_offset - by) for piece in bucket.pieces)
    return with_bucket(plan, number, offset=bucket.offset + by, nbytes=bucket.nbytes - by, pieces=pieces)


def test_given_a_stage_is_dropped_then_the_plan_is_refused() -> None:
    for made in (chained().plan(), chained("wire").plan(), filled().plan(), filled("window").plan()):
        for number in range(len(made.stages)):
            with pytest.raises(CoverageError):
                verify(without_stage(made, number))


def test_given_a_bucket_is_applied_or_filled_twice_then_it_is_refused() -> None:
    made = filled().plan()
    for kind, complaint in ((APPLY, "a second time"), (FILL, "needs no filling")):
        stage = made.stages[first(made, kind, -1)]
        with pytest.raises(CoverageError, match=complaint):
            verify(with_stages(made, [*made.stages, stage]))


def test_given_a_sink_receives_a_bucket_twice_then_it_is_refused() -> None:
    made = filled().plan()
    again = made.stages[first(made, TRANSFER, -1)]
    with pytest.raises(CoverageError, match="has it already"):
        verify(with_stages(made, [*made.stages, again]))
    leg = made.hops[0].legs[0]
    routes = tuple(replace(route, ranks=(*route.ranks, leg.receivers[0])) for route in made.routes)
    doubled = with_leg(replace(made, routes=routes), 0, 0, receivers=(*leg.receivers, leg.receivers[0]))
    with pytest.raises(CoverageError, match="to a rank twice"):
        verify(doubled)


def test_given_a_wrong_sender_then_it_is_refused() -> None:
    made = chained().plan()
    onward = made.hops[1].legs[0]
    swapped = with_leg(made, 1, 0, sender=onward.receivers[0], receivers=(onward.sender,))
    with pytest.raises(CoverageError, match="which lack it"):
        verify(swapped)
    with pytest.raises(PlanError, match="not those of route"):
        verify(with_leg(made, 1, 0, sender=3))


def test_given_a_stage_of_another_owners_hop_then_it_is_refused() -> None:
    made = chained().plan()
    number = first(made, TRANSFER)
    with pytest.raises(CoverageError, match="which lack it"):
        verify(with_stage(made, number, hop=2))


@pytest.mark.parametrize("after", [(5,), (23,), (24,), (10**6,), (-1,)])
def test_given_a_stage_waits_for_itself_or_a_later_one_then_it_is_refused(after: tuple[int, ...]) -> None:
    made = chained().plan()
    with pytest.raises(CoverageError, match="can deadlock"):
        verify(with_stage(made, 5, after=after))


def test_given_two_stages_of_a_bucket_change_places_then_it_is_refused() -> None:
    for made in (chained().plan(), filled().plan()):
        for number in range(len(made.stages) - 1):
            if made.stages[number].bucket == made.stages[number + 1].bucket:
                stages = list(made.stages)
                stages[number], stages[number + 1] = stages[number + 1], stages[number]
                with pytest.raises(CoverageError):
                    verify(with_stages(made, stages))


def test_given_a_slot_is_filled_again_before_it_was_sent_then_it_is_refused() -> None:
    """Nobody has read the first bucket yet, so there is no reader to wait for; it is lost all the same."""
    made = filled(ring_depth=1).plan()
    assert [stage.kind for stage in made.stages[:4]] == [FILL, TRANSFER, APPLY, FILL]
    with pytest.raises(CoverageError, match="of bucket 0 are missing, or not next to each other"):
        verify(forgetful(made, [0, 3, 1, 2, *range(4, len(made.stages))]))


def test_given_a_slot_is_received_into_again_before_it_was_applied_then_it_is_refused() -> None:
    made = chained("wire", ring_depth=1).plan()
    assert [stage.kind for stage in made.stages[:4]] == [TRANSFER, APPLY, TRANSFER, APPLY]
    overtaking = forgetful(made, [0, 2, 1, *range(3, len(made.stages))])
    with pytest.raises(CoverageError, match="not next to each other"):
        verify(overtaking)
    assert any(corrupts(overtaking, seed) for seed in range(20))


def corrupts(plan: Plan, seed: int) -> bool:
    try:
        simulate(plan, seed)
    except Corruption:
        return True
    return False


def test_given_a_bucket_is_given_a_slot_that_is_still_read_then_it_is_refused() -> None:
    made = chained("wire", ring_depth=2).plan()
    assert [bucket.slot for bucket in made.buckets[:2]] == [0, 1]
    with pytest.raises(CoverageError, match="may still read it"):
        verify(with_bucket(made, 1, slot=0))


@pytest.mark.parametrize("slot", [2, -2, 99])
def test_given_a_slot_that_is_not_in_the_ring_then_it_is_refused(slot: int) -> None:
    with pytest.raises(BudgetError, match="no slot of its size to be received into"):
        verify(with_bucket(chained("wire").plan(), 0, slot=slot))
    with pytest.raises(BudgetError, match="no slot of its size to be filled into"):
        verify(with_bucket(filled().plan(), 0, fill_slot=slot))


def test_given_a_bucket_without_the_slot_it_needs_then_it_is_refused() -> None:
    with pytest.raises(CoverageError, match="has no slot"):
        verify(with_bucket(chained("wire").plan(), 0, slot=IN_PLACE))
    with pytest.raises(CoverageError, match="needs no filling"):
        verify(with_bucket(filled().plan(), 0, fill_slot=IN_PLACE))


def test_given_a_ring_that_is_too_small_then_it_is_refused() -> None:
    made = chained("wire").plan()
    for index in range(len(made.rings)):
        with pytest.raises(BudgetError, match="no slot of its size"):
            verify(with_ring(made, index, depth=1))
        with pytest.raises(PlanError, match="differ in size"):
            verify(with_ring(made, index, slot_bytes=512))
    small = replace(made, rings=tuple(replace(ring, slot_bytes=512) for ring in made.rings))
    with pytest.raises(BudgetError, match="no slot of its size"):
        verify(small)
    with pytest.raises(BudgetError, match="to be filled into"):
        verify(with_ring(filled().plan(), 0, slot_bytes=512))


def test_given_a_ring_beyond_the_budget_then_the_rank_is_named() -> None:
    made = World(
        manifest([3000]), topology(["a"], ["b"], budget=2048), INVENTED, Settings(transport="wire", bucket_bytes=1024)
    ).plan()
    with pytest.raises(BudgetError, match="rank 1 would need 3,072 bytes of memory and has a budget of 2,048"):
        verify(with_ring(made, 0, depth=3))
    both = replace(made, rings=(*made.rings, Ring(1, RingUse.FILL, 1, 1024)))
    with pytest.raises(BudgetError, match="rank 1 would need 3,072"):
        verify(both)


@pytest.mark.parametrize(
    "changes", [{"rank": 99}, {"rank": -1}, {"depth": -1}, {"slot_bytes": -256}, {"slot_bytes": 1000}, {"rank": 3}]
)
def test_given_a_ring_that_makes_no_sense_then_it_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(PlanError):
        verify(with_ring(chained("wire").plan(), 0, **changes))


def test_given_a_rank_without_a_ring_to_receive_into_then_it_is_refused() -> None:
    made = chained("wire").plan()
    with pytest.raises(PlanError, match="without a ring"):
        verify(replace(made, rings=made.rings[1:]))


def test_given_a_tensor_in_pieces_and_a_sink_that_needs_it_whole_then_it_is_refused() -> None:
    made = chained().plan()
    fleet = topology(["a", "d"], ["a", "a", "b", "b", "c", "c"], whole_tensors=True)
    with pytest.raises(CoverageError, match="a sink takes tensors whole"):
        verify(replace(made, topology=fleet))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"route": 99}, "names route 99"),
        ({"route": -1}, "names route -1"),
        ({"route": 1}, "another leg uses"),
        ({"receivers": ()}, "not those of route"),
        ({"sender": 99}, "not those of route"),
    ],
)
def test_given_a_leg_that_does_not_fit_its_route_then_it_is_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint):
        verify(with_leg(chained().plan(), 1, 0, **changes))


def test_given_a_leg_to_a_source_then_it_is_refused() -> None:
    """A source that passes nothing on applies nothing either: nothing would say when its slot is free again."""
    made = World(manifest([100]), topology(["a", "a"], ["a"]), INVENTED, Settings(transport="wire")).plan()
    routes = (replace(made.routes[0], ranks=(0, 2, 1)),)
    with pytest.raises(PlanError, match=r"ranks \[1\], which are not sinks"):
        verify(with_leg(replace(made, routes=routes), 0, 0, receivers=(2, 1)))


@pytest.mark.parametrize(("field", "value"), [("bucket", 99), ("bucket", -1), ("hop", 99), ("hop", -1)])
def test_given_a_stage_that_names_nothing_then_it_is_refused(field: str, value: int) -> None:
    with pytest.raises(PlanError, match="not there"):
        verify(with_stage(chained().plan(), 0, **{field: value}))


def test_given_a_relay_that_only_maps_what_it_sends_then_it_is_refused() -> None:
    """It has no memory of its own to send from, and its mapping ends before the others have it."""
    made = chained().plan()
    routes = tuple(replace(route, maps_memory=True) if route.transport == "wire" else route for route in made.routes)
    with pytest.raises(PlanError, match="which map it"):
        verify(replace(made, routes=routes))


def test_given_a_stage_waits_for_mapped_memory_that_a_later_apply_gives_back_then_it_is_refused() -> None:
    """Stages wait for earlier ones only, and still the plan hangs: the simulator agrees."""
    made = filled("window", ring_depth=1).plan()
    assert [stage.kind for stage in made.stages[:6]] == [FILL, TRANSFER, APPLY, FILL, TRANSFER, APPLY]
    hanging = reordered(made, [0, 1, 3, 4, 5, 2, *range(6, len(made.stages))])
    with pytest.raises(CoverageError, match="not next to each other"):
        verify(hanging)
    with pytest.raises(Deadlock):
        simulate(hanging, 1)


def test_given_mapped_buckets_that_come_back_in_another_order_then_it_is_refused() -> None:
    made = filled("window", ring_depth=2).plan()
    kinds = [(stage.kind, stage.bucket) for stage in made.stages[:6]]
    assert kinds == [(FILL, 0), (TRANSFER, 0), (APPLY, 0), (FILL, 1), (TRANSFER, 1), (APPLY, 1)]
    with pytest.raises(CoverageError, match="not next to each other"):
        verify(reordered(made, [0, 1, 3, 4, 5, 2, *range(6, len(made.stages))]))


def test_given_a_bucket_nobody_applies_then_it_is_refused() -> None:
    made = World(manifest([100]), topology(["a"], ["b"]), INVENTED, Settings(transport="wire")).plan()
    with pytest.raises(CoverageError, match="bucket 0 is never applied"):
        verify(with_stages(made, made.stages[:-1]))
    with pytest.raises(CoverageError, match="missed"):
        verify(replace(made, buckets=(), stages=Stages()))


def test_given_a_leg_and_a_bucket_then_they_are_plain_values() -> None:
    """Equal plans are equal values, whoever made them."""
    assert Leg(0, 1, (2,)) == Leg(0, 1, (2,))
    assert Bucket(0, 0, 1, IN_PLACE, 0, ()) != Bucket(0, 0, 1, IN_PLACE, 1, ())
