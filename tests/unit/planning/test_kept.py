"""The verifier counts by itself what a loader keeps, so a planner that counts too little is found out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import msgspec
import pytest
from hypothesis import given, settings

from ckpt_transport.errors import BudgetError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import (
    Bucket,
    Extent,
    Manifest,
    PlacedTensor,
    Settings,
    Share,
    TensorRange,
    TensorSpec,
    Topology,
    loader_memory,
    slots,
    verify,
    verify_part,
)
from ckpt_transport.planning.verify import kept
from tests.unit.worlds import INVENTED, World, topology, worlds

NBYTES = 1024
KEPT = 3 * NBYTES
"""What a loader keeps of :func:`two_layers` at once: their tensors come in turns."""

Count = Callable[[Manifest, Sequence[Bucket], Share | None], int]


def keeping(fleet: Topology) -> Topology:
    """The same participants, but loaders of sinks keep tensors."""
    members = (
        msgspec.structs.replace(member, whole_tensors=True, keeps_tensors=True)
        if member.rank in fleet.sinks
        else member
        for member in fleet.participants
    )
    return msgspec.structs.replace(fleet, participants=tuple(members))


def two_layers(budget: int) -> World:
    """A version whose layers lie interleaved, and a sink with that budget."""
    specs = [TensorSpec(name, "U8", (NBYTES,)) for name in ("l.0.a", "l.1.a", "l.0.b", "l.1.b")]
    placed = tuple(PlacedTensor(spec, 0, number * NBYTES, NBYTES) for number, spec in enumerate(specs))
    version = Manifest("v", (Extent(0, len(placed) * NBYTES, MemoryKind.SHARED),), placed)
    fleet = keeping(topology(["a"], ["b"], budget=budget))
    return World(version, fleet, INVENTED, Settings(transport="wire", bucket_bytes=NBYTES, ring_depth=2))


def half(manifest: Manifest, buckets: Sequence[Bucket], share: Share | None) -> int:
    return loader_memory.most_kept(manifest, buckets, share) // 2


def nothing(manifest: Manifest, buckets: Sequence[Bucket], share: Share | None) -> int:
    return 0


def each_tensor_for_itself(manifest: Manifest, buckets: Sequence[Bucket], share: Share | None) -> int:
    """As of a loader that can begin with every tensor at once."""
    return max(bucket.payload for bucket in buckets)


@pytest.mark.parametrize("fault", [half, nothing, each_tensor_for_itself])
def test_given_a_planner_that_counts_too_little_then_both_proofs_refuse_its_plan(
    fault: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = KEPT + NBYTES
    honest = two_layers(budget).plan()
    verify(honest)
    verify_part(honest, 1, budget)

    monkeypatch.setattr(slots, "most_kept", fault)
    made = two_layers(budget).plan()

    with pytest.raises(BudgetError, match=f"rank 1 would need 5,120 bytes of memory and has a budget of {budget:,}"):
        verify(made)
    with pytest.raises(BudgetError, match=f"rank 1 would need 5,120 bytes of memory and has a budget of {budget:,}"):
        verify_part(made, 1, budget)


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_given_any_plan_for_loaders_that_keep_tensors_then_planner_and_verifier_count_the_same(world: World) -> None:
    try:
        made = dataclasses.replace(world, topology=keeping(world.topology)).plan()
    except BudgetError:
        return
    for rank in made.topology.sinks:
        come = [bucket for bucket in made.buckets if rank in made.receiver_sets[bucket.receiver_set]]
        share = made.topology.share_of(rank)
        assert kept.most_kept(made.manifest, come, share) == loader_memory.most_kept(made.manifest, come, share)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (None, 3 * NBYTES),
        (Share("", (("l.0.a", 0, 100), ("l.0.b", 0, NBYTES))), 100 + NBYTES),
        (Share("", (("l.0.b", 0, NBYTES),)), NBYTES),
    ],
)
def test_given_tensors_of_a_layer_that_are_present_then_what_is_needed_of_them_counts_from_the_beginning(
    share: Share | None, expected: int
) -> None:
    made = two_layers(1 << 20).plan()
    first = TensorRange(made.manifest.tensors[0].spec, 0, NBYTES)
    other = TensorRange(TensorSpec("l.0.c", "U8", (NBYTES,)), 0, NBYTES)
    manifest = msgspec.structs.replace(made.manifest, present=(first, other))
    third = [made.buckets[2]]
    for count in (kept.most_kept, loader_memory.most_kept):
        assert count(manifest, third, share) == expected
        assert count(manifest, [], share) == 0
