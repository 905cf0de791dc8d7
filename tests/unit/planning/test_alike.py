"""What is alike is planned and proved once; the result is that of planning and proving each by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st
from msgspec.structs import replace

from ckpt_transport.errors import PlanError
from ckpt_transport.planning import NOT_MEASURED, Plan, Settings, verify
from ckpt_transport.planning.broadcast_trees import BroadcastTree, direct_and_relayed
from ckpt_transport.planning.chain_broadcast import chain_broadcasts
from ckpt_transport.planning.links import Links
from ckpt_transport.planning.loads import LoadCounter
from ckpt_transport.planning.prediction import Moved, predict, received
from tests.unit.worlds import INVENTED, World, manifest, topology, worlds

SIZES = [512] * 40


def trees_of(world: World) -> Iterator[tuple[int, BroadcastTree]]:
    """Every broadcast tree of a world that reaches all sinks, with its owner."""
    everything, every = world.topology.sinks, "+".join(f"{name}-chain" for name in world.traits)
    owners = world.manifest.owners
    for owner in owners:
        for tree in (
            *direct_and_relayed(owner, everything, world.topology, world.traits),
            *chain_broadcasts(owner, owners, everything, world.topology, world.traits, every),
        ):
            if isinstance(tree, BroadcastTree):
                yield owner, tree


@checked(max_examples=100, deadline=None)
@given(worlds(), st.booleans())
def test_given_trees_that_share_hops_then_links_carry_what_they_do_when_each_tree_is_counted_alone(
    world: World, digests: bool
) -> None:
    extents = {extent.owner: extent for extent in reversed(world.manifest.extents)}
    takes = dict.fromkeys(world.topology.sinks, 0.5)

    def counter() -> LoadCounter:
        return LoadCounter(world.topology, world.traits, Links(NOT_MEASURED), digests)

    together, alone, one = list[Moved](), list[Moved](), counter()
    for number, (owner, tree) in enumerate(trees_of(world), 1):
        nbytes, buckets = 1000 * number, number
        together.append(Moved(one.stages(tree, extents[owner], takes), nbytes, buckets))
        alone.append(Moved(counter().stages(tree, extents[owner], takes), nbytes, buckets))
    for shared, plain in zip(together, alone, strict=True):
        assert predict([shared]).seconds == pytest.approx(predict([plain]).seconds)
    assert predict(together).seconds == pytest.approx(predict(alone).seconds)
    assert predict(together).nbytes == pytest.approx(predict(alone).nbytes)
    assert received(together) == pytest.approx(received(alone))


def symmetric(transport: str) -> Plan:
    """A plan of forty buckets, of which most are alike."""
    fleet = topology(["a"], ["b", "b", "c", "c", "d", "d"])
    made = World(manifest(SIZES), fleet, INVENTED, Settings(transport=transport, bucket_bytes=512)).plan()
    assert len(made.stages.patterns) < len(made.stages.blocks) / 4
    return made


@checked(max_examples=100, deadline=None)
@given(st.sampled_from(["read-chain", "read-chain+window", "wire+window"]), st.data())
def test_given_one_of_many_alike_buckets_with_a_fault_then_the_plan_is_refused(
    transport: str, data: st.DataObject
) -> None:
    """One bucket waits for another one than that in its slot, or goes another way, or to another slot."""
    made = symmetric(transport)
    verify(made)
    blocks, buckets = list(made.stages.blocks), list(made.buckets)
    last = len(blocks) - 1
    number = data.draw(st.integers(len(made.stages.patterns) * 4, last))
    block = blocks[number]
    fault = data.draw(st.sampled_from(["waits for another", "waits for none", "another pattern", "another slot"]))
    if fault == "waits for another":
        blocks[number] = replace(block, earlier=(block.earlier[0] % number + 1, *block.earlier[1:]))
    elif fault == "waits for none":
        blocks[number] = replace(block, earlier=())
    elif fault == "another pattern":
        blocks[number] = replace(block, pattern=blocks[0].pattern)
    else:
        buckets[number] = replace(buckets[number], slot=(buckets[number].slot + 1) % 4)
    spoilt = replace(made, buckets=tuple(buckets), stages=replace(made.stages, blocks=tuple(blocks)))
    with pytest.raises(PlanError):
        verify(spoilt)
