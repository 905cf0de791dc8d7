"""Whatever there is to move, between whomever: the plan holds, fits, and says why it is what it is."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st

from ckpt_transport.errors import BudgetError, ConfigError, PlanError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import (
    AUTO,
    EVERYTHING,
    Plan,
    RingUse,
    Settings,
    StageKind,
    Topology,
    explain,
    plan,
    summarize,
    verify,
)
from ckpt_transport.planning.values.plan import IN_PLACE
from ckpt_transport.transports.interface import FanOut, Reach
from tests.unit.worlds import INVENTED, PLENTY, World, chained, manifest, topology, traits, worlds

swiftly = checked(max_examples=150, deadline=None)
BUDGETS = st.one_of(st.integers(0, 6000), st.just(PLENTY))


def least_budget(world: World) -> int:
    """The smallest slot with which the world's update works, found without the planner."""
    if not any(participant.whole_tensors for participant in world.topology.participants):
        return 256
    return max(256, *(math.ceil((t.offset % 256 + t.nbytes) / 256) * 256 for t in world.manifest.tensors))


# -- every plan --------------------------------------------------------------------------------------------------------


@swiftly
@given(worlds())
def test_given_any_world_then_its_plan_is_proved_and_explained(world: World) -> None:
    made = world.plan()
    verify(made)
    lines = explain(made).splitlines()
    assert all(lines)
    assert any(made.digest[:16] in line for line in lines)
    assert any(f"transport {made.notes[0].removeprefix('transport ')}" in line for line in lines)


@swiftly
@given(worlds())
def test_given_the_same_world_twice_then_the_plans_have_one_digest_also_after_a_journey(world: World) -> None:
    made = world.plan()
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(world.manifest), type=type(world.manifest))
    assert plan(again, world.topology, dict(reversed(list(world.traits.items()))), world.settings).digest == made.digest
    decoded = Plan.decode(made.encode())
    assert decoded == made
    assert decoded.digest == made.digest


@swiftly
@given(worlds())
def test_given_any_plan_then_buckets_are_no_larger_than_asked_unless_one_tensor_needs_it(world: World) -> None:
    made = world.plan()
    aim = math.ceil(world.settings.bucket_bytes / 256) * 256
    if not made.rings:
        aim *= world.settings.ring_depth
    for bucket in made.buckets:
        assert bucket.nbytes <= aim or len({piece.tensor for piece in bucket.pieces if piece.nbytes}) == 1
        if made.rings:
            assert bucket.nbytes <= max(aim, least_budget(world))


@swiftly
@given(worlds())
def test_given_any_plan_then_tensors_are_as_aligned_in_a_slot_as_where_they_lie(world: World) -> None:
    made = world.plan()
    assert all(ring.slot_bytes % 256 == 0 for ring in made.rings)
    for bucket in made.buckets:
        assert bucket.offset % 256 == 0
        for piece in bucket.pieces:
            lies_at = made.manifest.tensors[piece.tensor].offset + piece.tensor_offset
            assert piece.bucket_offset % 256 == lies_at % 256


@swiftly
@given(worlds())
def test_given_several_owners_then_they_take_turns_from_the_first_bucket_on(world: World) -> None:
    made = world.plan()
    order = [made.owner(bucket) for bucket in made.buckets]
    counts = Counter(order)
    for turn in range(max(counts.values())):
        in_turn = sorted(owner for owner in counts if counts[owner] > turn)
        assert order[: len(in_turn)] == in_turn
        order = order[len(in_turn) :]


# -- memory ------------------------------------------------------------------------------------------------------------


@swiftly
@given(worlds(BUDGETS))
def test_given_budgets_then_none_is_exceeded_and_only_a_slot_that_does_not_fit_is_an_error(world: World) -> None:
    members = [msgspec.structs.replace(member, share=EVERYTHING) for member in world.topology.participants]
    world = dataclasses.replace(world, topology=Topology(tuple(members)))
    rich = Topology(tuple(msgspec.structs.replace(member, budget=PLENTY) for member in members))
    unbounded = plan(world.manifest, rich, world.traits, world.settings)
    rings = Counter(ring.rank for ring in unbounded.rings)
    tightest = min((world.topology.participants[rank].budget // count for rank, count in rings.items()), default=PLENTY)
    if tightest < least_budget(world):
        with pytest.raises(BudgetError, match="memory_budget"):
            world.plan()
        return
    made = world.plan()
    verify(made)
    assert Counter(ring.rank for ring in made.rings) == rings
    for rank in rings:
        used = sum(ring.nbytes for ring in made.rings if ring.rank == rank)
        assert used <= world.topology.participants[rank].budget
    smaller = any(made.ring(ring.rank, ring.use) != ring for ring in unbounded.rings)
    assert any(note.startswith("degraded") for note in made.notes) or not smaller


SERIAL = "degraded: one slot, so the stages run one after the other, instead of 4 slots, for want of memory"


@pytest.mark.parametrize(
    ("budget", "depth", "slot_bytes", "notes"),
    [
        (4096, 4, 1024, []),
        (4095, 3, 1024, ["degraded: a ring of 3 instead of 4 slots, for want of memory"]),
        (2048, 2, 1024, ["degraded: a ring of 2 instead of 4 slots, for want of memory"]),
        (1024, 1, 1024, [SERIAL]),
        (1000, 1, 768, ["degraded: slots of 768 instead of 1,024 bytes, for want of memory", SERIAL]),
    ],
)
def test_given_shrinking_memory_then_the_ring_grows_shallower_then_serial_and_says_so(
    budget: int, depth: int, slot_bytes: int, notes: list[str]
) -> None:
    made = plan(
        manifest([1024] * 6),
        topology(["a"], ["b"], budget=budget),
        INVENTED,
        Settings(transport="wire", bucket_bytes=1024),
    )
    ring = made.ring(1, RingUse.RECEIVE)
    assert ring is not None
    assert (ring.depth, ring.slot_bytes) == (depth, slot_bytes)
    assert [note for note in made.notes if "degraded" in note] == notes
    assert all(note in explain(made) for note in notes)


def test_given_a_small_version_then_a_budget_below_the_bucket_size_costs_no_depth() -> None:
    """Slots are as large as the largest bucket there is, and the ring is as deep as those allow."""
    made = plan(
        manifest([500, 500]),
        topology(["a"], ["b"], budget=4096),
        INVENTED,
        Settings(transport="wire", bucket_bytes=3072),
    )
    assert made.ring(1, RingUse.RECEIVE) == made.rings[0]
    assert (made.rings[0].depth, made.rings[0].slot_bytes) == (4, 1024)
    assert not any("degraded" in note for note in made.notes)


def test_given_only_empty_tensors_then_they_are_planned_like_others() -> None:
    for transport in ("wire", "post", "window", "wire+window"):
        world = World(
            manifest([0, 0], [0]), topology(["a", "a"], ["a", "a", "b", "b"]), INVENTED, Settings(transport=transport)
        )
        if transport in ("post", "window"):
            world = World(world.manifest, topology(["a", "a"], ["a"]), INVENTED, world.settings)
        made = world.plan()
        verify(made)
        assert sum(len(bucket.pieces) for bucket in made.buckets) == 3


def test_given_a_tensor_larger_than_a_slot_then_it_is_split_unless_somebody_needs_it_whole() -> None:
    settings = Settings(transport="wire", bucket_bytes=1024)
    split = plan(manifest([5000]), topology(["a"], ["b"]), INVENTED, settings)
    assert [piece.nbytes for bucket in split.buckets for piece in bucket.pieces] == [1024] * 4 + [904]
    whole = plan(manifest([5000]), topology(["a"], ["b"], whole_tensors=True), INVENTED, settings)
    assert [bucket.nbytes for bucket in whole.buckets] == [5000]
    assert whole.rings[0].slot_bytes == 5120


def test_given_a_whole_tensor_and_no_slot_for_it_then_the_error_names_the_tensor() -> None:
    """Not the largest tensor: the one that needs the largest slot where it lies."""
    with pytest.raises(BudgetError, match=r"5,376 bytes, which tensor 0\.1 \(U8 \[4900\]\) needs") as refused:
        plan(
            manifest([4900, 4900], start=200),
            topology(["a"], ["b"], whole_tensors=True, budget=5375),
            INVENTED,
            Settings(transport="wire", bucket_bytes=1024),
        )
    assert "5,375" in str(refused.value)


def test_given_less_than_the_smallest_slot_then_the_error_does_not_blame_a_tensor() -> None:
    with pytest.raises(BudgetError, match="smallest there is"):
        plan(manifest([9]), topology(["a"], ["b"], budget=255), INVENTED, Settings(transport="wire"))


def test_given_all_sinks_map_the_source_then_no_memory_is_needed_and_nothing_is_split() -> None:
    made = plan(
        manifest([5000]),
        topology(["a"], ["a", "a"], budget=0),
        INVENTED,
        Settings(transport="window", bucket_bytes=1024),
    )
    assert not made.rings
    assert [bucket.nbytes for bucket in made.buckets] == [5000]
    assert "no slots" in explain(made)


def test_given_memory_that_cannot_be_sent_from_then_its_owner_fills_and_the_others_do_not() -> None:
    private = manifest([3000], [3000])
    extents = (private.extents[0], msgspec.structs.replace(private.extents[1], kind=MemoryKind.PRIVATE))
    made = plan(
        msgspec.structs.replace(private, extents=extents),
        topology(["a", "a"], ["a"]),
        INVENTED,
        Settings(transport="window", bucket_bytes=1024),
    )
    verify(made)
    assert [(ring.rank, ring.use) for ring in made.rings] == [(1, RingUse.FILL)]
    assert {made.owner(bucket) for bucket in made.buckets if bucket.fill_slot != IN_PLACE} == {1}
    assert Counter(stage.kind for stage in made.stages)[StageKind.FILL] == 3
    assert "fills 3 buckets" in explain(made)


# -- the choice of a transport -----------------------------------------------------------------------------------------


@swiftly
@given(worlds())
def test_given_any_plan_then_no_two_buckets_of_a_sink_begin_with_the_same_byte(world: World) -> None:
    """Offsets are rounded down to multiples of 256, so they tell buckets apart only where these are larger."""
    made = world.plan()
    for rank in made.topology.sinks:
        first = [bucket.first for bucket in made.buckets if rank in made.receiver_sets[bucket.receiver_set]]
        assert len(set(first)) == len(first)


def seconds_of(duration: str) -> float:
    """What a duration says, as ``160 ms`` or ``2 min 5 s``."""
    units = {"µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
    numbers, names = duration.split()[::2], duration.split()[1::2]
    return sum(float(number) * units[name] for number, name in zip(numbers, names, strict=True))


@swiftly
@given(worlds())
def test_given_auto_then_no_other_choice_is_cheaper(world: World) -> None:
    """The costs stand in the notes and the others; the chosen one has the least of them."""
    auto = plan(world.manifest, world.topology, world.traits, Settings(bucket_bytes=world.settings.bucket_bytes))
    told = [note.partition(": about ") for note in (*auto.notes, *auto.others) if ": about " in note]
    costs = {name: seconds_of(cost.partition(",")[0]) for name, _, cost in told}
    assert costs[auto.notes[0].removeprefix("transport ")] == min(costs.values())
    assert list(costs.values()) == sorted(costs.values())


def test_given_faster_links_then_auto_changes_its_mind_and_says_why() -> None:
    version, fleet = manifest([4 << 20], [4 << 20]), topology(["a", "b"], ["c", "c", "d", "d"])
    for fast in ("wire", "read"):
        known = {
            name: traits(fan_out=FanOut.TREE, bandwidth=1e10 if name == fast else 1e8) for name in ("wire", "read")
        }
        made = plan(version, fleet, known, Settings())
        assert {route.transport for route in made.routes} == {fast}
        assert [note.partition(":")[0] for note in made.notes] == [
            f"transport {fast}", "chosen as the cheapest by the cost model", fast, "wire" if fast == "read" else "read",
            "links of 4 hosts were not measured, so assumed rates count",
        ]  # fmt: skip


def test_given_many_sinks_on_a_host_then_a_relay_is_cheaper_than_a_linear_fan_out() -> None:
    known = {"read": INVENTED["read"], "window": INVENTED["window"]}
    made = plan(manifest([1 << 20]), topology(["a"], ["b"] * 8, transports=tuple(known)), known, Settings())
    assert made.notes[0] == "transport read+window"
    assert [leg.receivers for hop in made.hops for leg in hop.legs] == [(1,), tuple(range(2, 9))]


def test_given_a_transport_that_the_source_cannot_use_then_the_summary_says_why_and_names_no_senseless_relay() -> None:
    known = {"read": INVENTED["read"], "window": INVENTED["window"]}
    made = plan(manifest([1 << 20]), topology(["a"], ["b", "c"], transports=tuple(known)), known, Settings())
    summary, whole = summarize(made), explain(made)
    assert "window: stays within a host" in summary
    assert "read+window: " not in summary
    assert "read+window: every host has one sink" in whole
    assert set(summary.splitlines()) <= set(whole.splitlines())


@pytest.mark.parametrize("fan_out", FanOut)
def test_given_any_fan_out_then_one_receiver_costs_the_same(fan_out: FanOut) -> None:
    known = {"wire": traits(fan_out=fan_out, bandwidth=1e9, latency=0.0)}
    made = plan(manifest([10**9]), topology(["a"], ["b"]), known, Settings())
    (wire,) = (note for note in made.notes if note.startswith("wire: "))
    assert re.match(r"wire: about 1(\.0\d)? s, 1 s of it for what rank [01] (sends|receives)", wire)


@swiftly
@given(worlds())
def test_given_any_plan_then_no_leg_goes_further_than_its_transport(world: World) -> None:
    made = world.plan()
    for route in made.routes:
        hosts = {world.topology.host(rank) for rank in route.ranks}
        assert len(hosts) == 1 or world.traits[route.transport].reach is Reach.NETWORK
        assert all(route.transport in world.topology.participants[rank].transports for rank in route.ranks)


@swiftly
@given(worlds())
def test_given_any_plan_then_a_relay_passes_on_only_what_it_has_in_a_slot(world: World) -> None:
    made = world.plan()
    relays = {leg.sender for hop in made.hops for leg in hop.legs} & set(world.topology.sinks)
    assert all(made.ring(rank, RingUse.RECEIVE) is not None for rank in relays)


@pytest.mark.parametrize(
    ("wanted", "reasons"),
    [
        (
            "pigeon",
            ["transport 'pigeon' cannot carry this update; pigeon: there is no transport 'pigeon'", "wire: about"],
        ),
        ("window", ["window: stays within a host, and sinks [2] are on other hosts than source 0"]),
        ("window+wire", ["window stays within one; did you mean 'wire+window'?"]),
        ("window+window", ["window+window: a relay has two transports, and this one has window twice"]),
        ("wire+read", ["wire+read: read reaches other hosts itself"]),
        ("wire+window+post", ["wire+window+post: a relay has two transports"]),
        ("wire+window-chain", ["of which only the first may form a chain"]),
        ("post+window", ["and post stays within one; post: "]),
        ("screen+window", ["screen+window: what screen brings is mapped"]),
        ("read", ["read: read is not available at rank 2"]),
    ],
)
def test_given_a_transport_that_cannot_do_it_then_it_is_refused_with_every_reason(
    wanted: str, reasons: list[str]
) -> None:
    fleet = topology(["a"], ["a", "b"])
    poorer = msgspec.structs.replace(fleet.participants[2], transports=("wire", "window", "screen", "post"))
    fleet = Topology((*fleet.participants[:2], poorer))
    with pytest.raises(ConfigError) as refused:
        plan(manifest([100]), fleet, INVENTED, Settings(transport=wanted))
    for reason in reasons:
        assert reason in str(refused.value)


def test_given_no_transport_reaches_everybody_then_the_reasons_are_named() -> None:
    with pytest.raises(PlanError, match="window: stays within a host"):
        plan(manifest([100]), topology(["a"], ["b"]), {"window": INVENTED["window"]}, Settings())
    with pytest.raises(PlanError, match="none is available everywhere"):
        plan(manifest([100]), topology(["a"], ["b"]), {}, Settings())


def test_given_relays_where_there_is_nothing_to_relay_then_the_chain_says_so() -> None:
    for hosts, reason in ((["a", "a"], "nothing to relay"), (["b", "c"], "nothing to pass on")):
        with pytest.raises(ConfigError, match=reason):
            plan(manifest([100]), topology(["a"], hosts), INVENTED, Settings(transport="wire+window"))


def test_given_nothing_to_move_or_nobody_to_move_it_to_then_there_is_no_plan() -> None:
    with pytest.raises(PlanError, match="at least one sink"):
        plan(manifest([1]), topology(["a"], []), INVENTED, Settings())
    with pytest.raises(PlanError, match="'step-2' holds no tensors"):
        plan(manifest([]), topology(["a"], ["a"]), INVENTED, Settings())


def test_given_ranks_out_of_order_then_there_is_no_topology() -> None:
    with pytest.raises(PlanError, match="in order"):
        Topology(topology(["a"], ["b"]).participants[::-1])


def test_given_a_fleet_of_hosts_then_the_explanation_tells_who_sends_to_whom() -> None:
    text = explain(chained().plan())
    assert "2 sources, 6 sinks, 4 hosts" in text
    assert "0 -> 4, 6 over wire; 0 -> 2, 3 over window" in text
    assert "3 tensors split" in text
    assert AUTO not in text
