"""Sinks that need a part of a version are sent that part, where that is cheaper, and it is proved that it suffices."""

from __future__ import annotations

import random
from dataclasses import replace as changed

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st

from ckpt_transport.errors import CoverageError, PlanError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import (
    Extent,
    Manifest,
    PlacedTensor,
    Plan,
    Settings,
    TensorRange,
    TensorSpec,
    digest_of,
    explain,
    verify,
)
from ckpt_transport.planning.demand import scatter
from ckpt_transport.planning.loader_memory import most_kept
from ckpt_transport.planning.values.plan import IN_PLACE
from tests.unit.any_schedule import needed, simulate
from tests.unit.worlds import COMMON, EXPERT, EXPERTS, INVENTED, World, alternating, mixture, sharing, topology, worlds

replace = msgspec.structs.replace
QUICK = {name: replace(known, latency=0.0) for name, known in INVENTED.items()}
"""Transports for which the size of a version does not matter."""


def experts_of(version: Manifest, rank: int, size: int) -> list[tuple[str, int, int]]:
    """What rank ``rank`` of ``size`` needs when each has some of the experts of every layer."""
    mine = range(rank * EXPERTS // size, (rank + 1) * EXPERTS // size)
    return [
        (tensor.spec.name, 0, tensor.nbytes)
        for tensor in version.tensors
        if "attention" in tensor.spec.name or int(tensor.spec.name.rpartition(".")[2]) in mine
    ]


def parallel(size: int, transport: str, hosts: str = "") -> World:
    """An engine of ``size`` ranks that share the experts, and a source."""
    version = mixture()
    fleet = topology(["a"], hosts or "b" * size)
    shared = sharing(fleet, version, *(experts_of(version, rank, size) for rank in range(size)))
    return World(
        version, shared, QUICK, Settings(transport=transport, bucket_bytes=8192, ring_depth=2, range_bytes=256)
    )


@pytest.mark.parametrize("transport", ["wire", "read", "wire+window"])
@pytest.mark.parametrize("size", [2, 8])
def test_given_experts_on_all_ranks_then_each_is_sent_its_own_and_every_schedule_ends_well(
    transport: str, size: int
) -> None:
    made = parallel(size, transport, "bbcc" * 2 if size == 8 else "bb").plan()
    verify(made)
    share = 3 * (COMMON + EXPERTS // size * EXPERT)
    assert made.moves_shares
    assert made.bytes_to == dict.fromkeys(made.topology.sinks, share)
    for seed in range(10):
        simulate(made, seed)


def test_given_what_is_read_in_place_then_everything_is_shown_to_all() -> None:
    """Nothing moves, whatever a sink leaves alone; more buckets would cost more."""
    world = parallel(8, "window", "a" * 8)
    made = changed(world, settings=replace(world.settings, transport="window")).plan()
    verify(made)
    assert not made.moves_shares


def test_given_shares_then_the_plan_says_what_goes_to_whom_and_what_all_to_all_would_take() -> None:
    told = explain(parallel(8, "wire").plan())
    assert "each sink is sent what it needs, 13.5 KiB to 13.5 KiB of 97.5 KiB (13.8% to 13.8%)" in told
    assert "0 -> 1 over wire, 12 KiB of 97.5 KiB" in told
    assert "; broadcast in" in told


def test_given_a_sink_that_needs_everything_then_it_gets_everything_beside_those_that_do_not() -> None:
    version = mixture()
    fleet = sharing(topology(["a"], "bbb"), version, experts_of(version, 0, 2), None, experts_of(version, 1, 2))
    made = World(version, fleet, QUICK, Settings(transport="read", range_bytes=256)).plan()
    verify(made)
    assert made.bytes_to[2] == version.nbytes
    assert made.bytes_to[1] == made.bytes_to[3] < version.nbytes
    assert set(made.receiver_sets) == {(1, 2, 3), (1, 2), (2, 3)}


def test_given_tensors_that_no_sink_needs_then_they_are_not_moved() -> None:
    version = mixture()
    fleet = sharing(topology(["a"], "b"), version, experts_of(version, 0, 8))
    made = World(version, fleet, QUICK, Settings(transport="wire", range_bytes=256)).plan()
    verify(made)
    assert made.receiver_sets == ((1,),)
    assert sum(bucket.payload for bucket in made.buckets) == made.bytes_to[1] == 3 * (COMMON + EXPERT)


def test_given_versions_with_other_tensors_than_a_share_is_of_then_the_share_does_not_count() -> None:
    version = mixture()
    fleet = sharing(topology(["a"], "b"), version, experts_of(version, 0, 8))
    assert fleet.for_specs(digest_of(version.specs.values())) is fleet
    other = fleet.for_specs(digest_of(mixture(layers=4).specs.values()))
    assert other.share_of(1) is None
    assert fleet.share_of(1) is not None


@pytest.mark.parametrize(
    ("runs", "range_bytes", "sent"),
    [
        ([(0, 4096)], 256, [(0, 4096)]),
        ([(1024, 1024)], 256, [(1024, 1024)]),
        ([(0, 1024), (2048, 1024)], 256, [(0, 1024), (2048, 1024)]),
        ([(0, 1024), (2048, 1024)], 2000, [(0, 4096)]),
        ([(n * 64, 32) for n in range(64)], 256, [(0, 4096)]),
        ([], 256, []),
    ],
)
def test_given_runs_then_they_are_sent_as_they_are_unless_they_are_short(
    runs: list[tuple[int, int]], range_bytes: int, sent: list[tuple[int, int]]
) -> None:
    version = Manifest(
        "v", (Extent(0, 4096, MemoryKind.SHARED),), (PlacedTensor(TensorSpec("t", "U8", (4096,)), 0, 0, 4096),)
    )
    fleet = sharing(topology(["a"], "b"), version, [("t", start, nbytes) for start, nbytes in runs])
    demand = scatter(version, fleet, range_bytes)
    assert [(demanded.offset, demanded.nbytes) for demanded in demand.ranges] == sent


def test_given_a_sink_that_takes_tensors_whole_then_none_is_cut() -> None:
    version = mixture()
    fleet = topology(["a"], "bb", whole_tensors=True)
    shared = sharing(fleet, version, [("layers.0.experts.0", 0, 100)], [("layers.0.experts.0", 50, 2000)])
    made = World(version, shared, QUICK, Settings(transport="wire", range_bytes=1)).plan()
    verify(made)
    assert made.bytes_to == {1: EXPERT, 2: EXPERT}


# -- the proof ---------------------------------------------------------------------------------------------------------


def with_receiver_set(plan: Plan, number: int, receiver_set: int) -> Plan:
    buckets = list(plan.buckets)
    buckets[number] = replace(buckets[number], receiver_set=receiver_set)
    return replace(plan, buckets=tuple(buckets))


def test_given_any_bucket_with_another_receiver_set_then_the_proof_fails() -> None:
    made = parallel(2, "read").plan()
    for number, bucket in enumerate(made.buckets):
        for receiver_set in range(len(made.receiver_sets)):
            if receiver_set != bucket.receiver_set:
                with pytest.raises((CoverageError, PlanError)):
                    verify(with_receiver_set(made, number, receiver_set))


def test_given_a_sink_that_needs_more_than_the_plan_brings_then_the_proof_names_bytes_and_sink() -> None:
    made = parallel(2, "read").plan()
    more = (*made.topology.shares[0].ranges, ("layers.1.experts.7", 64, 64))
    shares = (replace(made.topology.shares[0], ranges=more), made.topology.shares[1])
    with pytest.raises(CoverageError, match=r"bytes 64 to 128 of layers\.1\.experts\.7 are missed by sinks \[1\]"):
        verify(replace(made, topology=replace(made.topology, shares=shares)))


def test_given_a_rank_that_neither_needs_a_bucket_nor_passes_it_on_then_the_proof_fails() -> None:
    made = parallel(2, "read").plan()
    receiver_set = next(number for number, ranks in enumerate(made.receiver_sets) if ranks == (1, 2))
    narrow = (*made.receiver_sets[:receiver_set], (1,), *made.receiver_sets[receiver_set + 1 :])
    share = replace(made.topology.shares[1], ranges=())
    with pytest.raises((PlanError, CoverageError), match="neither need it nor pass it on"):
        verify(
            replace(
                made, receiver_sets=narrow, topology=replace(made.topology, shares=(made.topology.shares[0], share))
            )
        )


@pytest.mark.parametrize("receiver_sets", [((0,), (1, 2), (2,)), ((), (1, 2), (2,)), ((1,),)])
def test_given_receiver_sets_that_are_no_sinks_or_are_not_there_then_the_proof_fails(
    receiver_sets: tuple[tuple[int, ...], ...],
) -> None:
    with pytest.raises(PlanError, match="receiver set"):
        verify(replace(parallel(2, "read").plan(), receiver_sets=receiver_sets))


@checked(max_examples=100, deadline=None)
@given(worlds(), st.data())
def test_given_any_world_then_what_is_missing_from_a_share_is_found(world: World, data: st.DataObject) -> None:
    """Given a plan, when one sink loses one bucket that holds bytes it needs, then the proof fails."""
    made = world.plan()
    verify(made)
    losses = [
        (number, rank)
        for number, bucket in enumerate(made.buckets)
        for rank in made.receiver_sets[bucket.receiver_set]
        if any(_needs(made, rank, bucket.pieces[n].tensor, bucket.pieces[n]) for n in range(len(bucket.pieces)))
    ]
    if not losses:
        return
    number, rank = data.draw(st.sampled_from(losses))
    left = tuple(other for other in made.receiver_sets[made.buckets[number].receiver_set] if other != rank)
    broken = with_receiver_set(
        replace(made, receiver_sets=(*made.receiver_sets, left)), number, len(made.receiver_sets)
    )
    with pytest.raises((CoverageError, PlanError)):
        verify(broken)


def _needs(plan: Plan, rank: int, tensor: int, piece: object) -> bool:
    asked = needed(plan, rank, plan.manifest.tensors[tensor])
    start, nbytes = piece.tensor_offset, piece.nbytes  # type: ignore[attr-defined]
    return bool(asked[start : start + max(nbytes, 1)].any())


# -- buckets of several runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["wire", "read", "post", "wire+window"])
def test_given_ranks_that_take_turns_in_memory_then_their_buckets_gather_several_runs(transport: str) -> None:
    """Given experts of both ranks in turns, then a bucket holds several of one rank's, packed in its slot."""
    version = mixture()
    shared = [
        [(tensor.spec.name, 0, tensor.nbytes) for number, tensor in enumerate(version.tensors) if number % 2 == rank]
        for rank in range(2)
    ]
    hosts = "aa" if transport == "post" else "bb"
    fleet = sharing(topology(["a"], hosts), version, *shared)
    made = World(version, fleet, QUICK, Settings(transport=transport, bucket_bytes=8192, range_bytes=256)).plan()
    verify(made)
    assert made.moves_shares
    assert max(len(bucket.ranges) for bucket in made.buckets) > 1
    assert len(made.buckets) < len(version.tensors)
    for seed in range(10):
        simulate(made, seed)


def test_given_memory_that_sinks_map_then_its_ranges_are_gathered_like_those_that_pass_through_slots() -> None:
    """Given sinks beside the source and elsewhere, then a bucket shows several runs of memory to those that map it."""
    world = alternating("wire+window", "aabb")
    made = world.plan()
    verify(made)
    assert len(made.buckets) < len(world.manifest.tensors)
    assert any(bucket.gathered and bucket.fill_slot == IN_PLACE for bucket in made.buckets)
    for seed in range(10):
        simulate(made, seed)


def gathered() -> tuple[Plan, int]:
    """A plan, and the number of a bucket of several ranges."""
    version = mixture()
    shared = [
        [(tensor.spec.name, 0, tensor.nbytes) for number, tensor in enumerate(version.tensors) if number % 2 == rank]
        for rank in range(2)
    ]
    fleet = sharing(topology(["a"], "bb"), version, *shared)
    made = World(version, fleet, QUICK, Settings(transport="wire", bucket_bytes=16384, range_bytes=256)).plan()
    return made, next(number for number, bucket in enumerate(made.buckets) if len(bucket.ranges) > 1)


@pytest.mark.parametrize(
    ("field", "change"),
    [("offset", 256), ("offset", 8), ("bucket_offset", 256), ("bucket_offset", -256), ("nbytes", -1)],
)
def test_given_a_run_that_lies_elsewhere_then_the_proof_fails(field: str, change: int) -> None:
    made, number = gathered()
    bucket = made.buckets[number]
    runs = list(bucket.gathered)
    runs[1] = replace(runs[1], **{field: getattr(runs[1], field) + change})
    buckets = list(made.buckets)
    buckets[number] = replace(bucket, gathered=tuple(runs))
    with pytest.raises((CoverageError, PlanError)):
        verify(replace(made, buckets=tuple(buckets)))


# -- where shares are not worth it, or do not count --------------------------------------------------------------------


def test_given_relays_without_room_for_shares_then_everything_goes_to_all() -> None:
    """Given hosts of which only the first sink has memory for slots, then shares would be relayed by the others."""
    version = mixture()
    fleet = sharing(topology(["a"], "bbcc"), version, *(experts_of(version, rank, 4) for rank in range(4)))
    poor = tuple(replace(member, budget=0) if member.rank in (2, 4) else member for member in fleet.participants)
    settings = Settings(transport="wire+window", bucket_bytes=8192, ring_depth=2, range_bytes=256)
    assert World(version, fleet, QUICK, settings).plan().moves_shares
    made = World(version, replace(fleet, participants=poor), QUICK, settings).plan()
    verify(made)
    assert not made.moves_shares


def test_given_a_sink_without_memory_that_needs_nothing_then_the_others_get_their_shares_through_small_slots() -> None:
    """Given memory for neither all slots of shares nor any of everything, then shares pass through what there is."""
    version = mixture()
    fleet = sharing(topology(["a"], "bb"), version, experts_of(version, 0, 8), [])
    poor = tuple(replace(member, budget=0 if member.rank == 2 else 4096) for member in fleet.participants)
    settings = Settings(transport="wire", bucket_bytes=8192, ring_depth=2, range_bytes=256)
    made = World(version, replace(fleet, participants=poor), QUICK, settings).plan()
    verify(made)
    assert made.bytes_to == {1: 3 * (COMMON + EXPERT), 2: 0}
    assert any(note.startswith("degraded") for note in made.notes)


def test_given_many_small_tensors_in_turns_then_their_number_is_counted() -> None:
    """Given transfers that cost time whatever their size, then everything goes to all in large buckets."""
    tensors = tuple(
        PlacedTensor(TensorSpec(f"t{number}", "U8", (4096,)), 0, number * 4096, 4096) for number in range(2000)
    )
    version = Manifest("v", (Extent(0, 2000 * 4096, MemoryKind.SHARED),), tensors)
    shared = [[(f"t{number}", 0, 4096) for number in range(rank, 2000, 4)] for rank in range(4)]
    fleet = sharing(topology(["a"], "bbbb"), version, *shared)
    made = World(version, fleet, INVENTED, Settings(transport="read", range_bytes=256)).plan()
    assert not made.moves_shares


def test_given_experts_in_random_places_then_there_are_not_more_receiver_sets_than_routes_are_worth() -> None:
    """Given each expert on two of sixteen ranks, then what goes to the rarest pairs goes to all."""
    chance = random.Random(0)
    tensors = tuple(PlacedTensor(TensorSpec(f"e{n}", "U8", (4096,)), 0, n * 4096, 4096) for n in range(400))
    version = Manifest("v", (Extent(0, 400 * 4096, MemoryKind.SHARED),), tensors)
    homes = [chance.sample(range(16), 2) for _ in tensors]
    shared = [[(f"e{n}", 0, 4096) for n, home in enumerate(homes) if rank in home] for rank in range(16)]
    fleet = sharing(topology(["a"], "b" * 16), version, *shared)
    assert len({tuple(sorted(home)) for home in homes}) > 100
    assert len(scatter(version, fleet, 256).receiver_sets) <= 32
    made = World(version, fleet, QUICK, Settings(transport="read", range_bytes=256)).plan()
    verify(made)
    simulate(made, 0)


def test_given_what_is_present_and_not_needed_then_no_loader_keeps_it() -> None:
    """Given a round of an update by P2P, when a sink has what it does not need, then its budget is not charged."""
    version = mixture(1)
    rest = tuple(tensor for tensor in version.tensors if tensor.spec.name.endswith((".0", "attention")))
    present = tuple(TensorRange(t.spec, 0, t.nbytes) for t in version.tensors if t not in rest)
    partial = replace(version, tensors=rest, present=present)
    fleet = sharing(topology(["a"], "b"), version, [(t.spec.name, 0, t.nbytes) for t in rest])
    members = tuple(replace(m, keeps_tensors=m.rank > 0, budget=3 * 8192) for m in fleet.participants)
    keeping = replace(fleet, participants=members)
    made = World(partial, keeping, QUICK, Settings(transport="wire", bucket_bytes=4096, ring_depth=2)).plan()
    verify(made)
    assert most_kept(made.manifest, made.buckets, keeping.share_of(1)) == COMMON + EXPERT
    assert most_kept(made.manifest, made.buckets, None) == COMMON + EXPERTS * EXPERT


def test_given_a_share_of_other_tensors_then_the_proof_fails() -> None:
    made = parallel(2, "wire").plan()
    shares = tuple(replace(share, specs="of something else") for share in made.topology.shares)
    with pytest.raises(PlanError, match="a version with other tensors"):
        verify(replace(made, topology=replace(made.topology, shares=shares)))


def test_given_a_bucket_without_pieces_then_the_proof_fails() -> None:
    made = parallel(2, "wire").plan()
    buckets = (*made.buckets, replace(made.buckets[0], pieces=()))
    with pytest.raises(PlanError, match="holds nothing"):
        verify(replace(made, buckets=buckets))


def test_given_a_tensor_outside_its_extent_that_nobody_needs_then_the_proof_fails() -> None:
    version = mixture()
    fleet = sharing(topology(["a"], "b"), version, experts_of(version, 0, 8))
    made = World(version, fleet, QUICK, Settings(transport="wire", range_bytes=256)).plan()
    last = replace(version.tensors[-1], offset=version.extents[0].nbytes - 1)
    with pytest.raises(PlanError, match="lies outside its extent"):
        verify(replace(made, manifest=replace(version, tensors=(*version.tensors[:-1], last))))
