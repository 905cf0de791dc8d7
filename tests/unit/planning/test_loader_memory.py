"""Given a loader that keeps tensors until it has a layer, then the plan counts that memory."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from hypothesis import given, settings

from ckpt_transport.errors import BudgetError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import Extent, Manifest, PlacedTensor, Plan, TensorSpec, Topology, verify
from ckpt_transport.planning.loader_memory import layer_of, most_kept
from ckpt_transport.planning.values.settings import Settings
from tests.unit.worlds import INVENTED, World, topology, worlds


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.up_proj.weight", "model.layers.3"),
        ("model.layers.3.mlp.experts.7.w1.weight", "model.layers.3"),
        ("transformer.h.0.attn.bias", "transformer.h.0"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("lm_head.weight", "lm_head"),
        ("scale", "scale"),
    ],
)
def test_given_the_name_of_a_tensor_then_its_layer_is_the_name_up_to_the_first_number(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def layers(*names: str, nbytes: int = 1024, kind: MemoryKind = MemoryKind.SHARED) -> Manifest:
    """Tensors of the given names, one after the other."""
    placed = tuple(
        PlacedTensor(TensorSpec(name, "F32", (nbytes // 4,)), 0, number * nbytes, nbytes)
        for number, name in enumerate(names)
    )
    return Manifest("v", (Extent(0, nbytes * len(names), kind),), placed)


def keeping(world: Topology) -> Topology:
    """The same participants, but sinks keep tensors."""
    members = tuple(
        msgspec.structs.replace(member, whole_tensors=True, keeps_tensors=True)
        if member.rank in world.sinks
        else member
        for member in world.participants
    )
    return msgspec.structs.replace(world, participants=members)


def planned(manifest: Manifest, budget: int, transport: str = "wire") -> Plan:
    fleet = keeping(topology(["a"], ["b"], budget=budget))
    return World(manifest, fleet, INVENTED, Settings(transport=transport, bucket_bytes=1024, ring_depth=2)).plan()


def test_given_a_layer_of_four_tensors_then_four_are_kept_and_given_interleaved_layers_then_more() -> None:
    in_order = planned(layers("l.0.a", "l.0.b", "l.0.c", "l.0.d", "l.1.a", "l.1.b"), 1 << 20)
    assert most_kept(in_order.manifest, in_order.buckets, None) == 4 * 1024
    mixed = planned(layers("l.0.a", "l.1.a", "l.0.b", "l.1.b"), 1 << 20)
    assert most_kept(mixed.manifest, mixed.buckets, None) == 3 * 1024


def test_given_what_is_read_in_place_then_nothing_is_kept() -> None:
    fleet = keeping(topology(["a"], ["a"], budget=1))
    made = World(
        layers("l.0.a", "l.0.b"), fleet, INVENTED, Settings(transport="window", bucket_bytes=1024, ring_depth=2)
    ).plan()
    assert made.rings == ()
    assert most_kept(made.manifest, made.buckets, None) == 0
    verify(made)


def test_given_slots_that_a_sink_sees_and_a_budget_below_what_its_loader_keeps_then_both_are_named() -> None:
    fleet = keeping(topology(["a"], ["a"], budget=2048))
    filled = layers("l.0.a", "l.0.b", "l.0.c", kind=MemoryKind.PRIVATE)
    settings = Settings(transport="window", bucket_bytes=1024, ring_depth=2)
    with pytest.raises(BudgetError, match=r"keeps up to 3,072 bytes .* budget is 2,048 bytes; raise memory_budget"):
        World(filled, fleet, INVENTED, settings).plan()


def test_given_a_budget_for_the_kept_layer_and_one_slot_then_it_is_enough_and_one_byte_less_is_not() -> None:
    names = ("l.0.a", "l.0.b", "l.0.c", "l.1.a")
    enough = planned(layers(*names), 3 * 1024 + 1024)
    assert [ring.depth for ring in enough.rings if ring.rank == 1] == [1]
    with pytest.raises(BudgetError, match=r"keeps up to 3,072 bytes .* raise memory_budget"):
        planned(layers(*names), 3 * 1024 + 1023)


def test_given_a_plan_whose_sink_has_less_memory_than_it_keeps_then_the_verifier_refuses_it() -> None:
    made = planned(layers("l.0.a", "l.0.b", "l.0.c"), 1 << 20)
    poorer = Topology(
        tuple(
            msgspec.structs.replace(member, budget=4096) if member.rank == 1 else member
            for member in made.topology.participants
        )
    )
    with pytest.raises(BudgetError, match="rank 1 would need 5,120 bytes"):
        verify(msgspec.structs.replace(made, topology=poorer))


@settings(max_examples=100, deadline=None)
@given(worlds())
def test_given_any_world_then_a_plan_for_sinks_that_keep_tensors_holds(world: World) -> None:
    try:
        made = dataclasses.replace(world, topology=keeping(world.topology)).plan()
    except BudgetError:
        return
    verify(made)
