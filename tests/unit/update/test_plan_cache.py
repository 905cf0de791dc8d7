"""Given an update, when the next version has the same tensors, then its plan is the last one under another name."""

from __future__ import annotations

import msgspec
import pytest

from ckpt_transport.errors import BudgetError, CheckpointError, CoverageError, PlanMismatchError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import (
    Extent,
    Manifest,
    PlacedTensor,
    RankInfo,
    Role,
    Settings,
    Stages,
    TensorSpec,
    Topology,
    plan,
)
from ckpt_transport.update.plan_cache import PlanCache
from ckpt_transport_gloo import GlooTransport
from ckpt_transport_shm import ShmTransport

TRAITS = {"shm": ShmTransport.traits}
TOPOLOGY = Topology(
    tuple(RankInfo(rank, role, "here", 1 << 20, ("shm",)) for rank, role in enumerate((Role.SOURCE, Role.SINK)))
)


def shard(version: str, rows: int = 4) -> Manifest:
    spec = TensorSpec("weight", "F32", (rows, 64))
    return Manifest(version, (Extent(0, 4096, MemoryKind.SHARED),), (PlacedTensor(spec, 0, 0, rows * 256),))


def make(plans: PlanCache, manifest: Manifest, settings: Settings | None = None) -> str:
    return plans.make([manifest], TOPOLOGY, TRAITS, settings or Settings()).digest


def test_given_the_next_version_then_its_plan_has_the_shape_of_the_last_and_a_digest_of_its_own() -> None:
    plans = PlanCache(1 << 20)
    first, second = make(plans, shard("one")), make(plans, shard("two"))
    assert first != second
    assert second == plan(shard("two"), TOPOLOGY, TRAITS, Settings()).digest
    assert make(plans, shard("one")) == first


def test_given_other_tensors_or_settings_then_another_plan_is_made() -> None:
    plans = PlanCache(1 << 20)
    make(plans, shard("one"))
    before = plans.shape
    make(plans, shard("one", rows=8))
    assert plans.shape != before
    make(plans, shard("one"), Settings(transport="shm"))
    assert plans.shape != before


def test_given_a_known_plan_when_a_shard_of_another_version_comes_then_it_is_refused() -> None:
    plans = PlanCache(1 << 20)
    make(plans, shard("one"))
    with pytest.raises(CheckpointError, match="'two' where 'one' was asked for"):
        plans.make([shard("one"), shard("two")], TOPOLOGY, TRAITS, Settings())


def test_given_a_follower_then_it_renames_the_plan_it_knows_and_refuses_one_it_does_not() -> None:
    leading, following = PlanCache(1 << 20), PlanCache(1 << 20)
    made = leading.make([shard("one")], TOPOLOGY, TRAITS, Settings())
    with pytest.raises(PlanMismatchError, match="is not known here"):
        following.take(b"", made.shape, "one")
    assert following.take(made.encode(), made.shape, "one").digest == made.digest
    program = following.schedule(made, 1)
    again = following.take(b"", made.shape, "two")
    assert again.digest == make(leading, shard("two"))
    assert again.manifest.version == "two"
    assert following.schedule(again, 1) is program
    assert following.schedule(again, 0) is not program


def test_given_a_follower_then_it_proves_its_part_of_each_new_plan_and_not_again() -> None:
    """Given a plan in which a byte is missing, then it is refused each time; one that holds is proved once."""
    leading, following = PlanCache(1 << 20), PlanCache(1 << 20)
    made = leading.make([shard("one")], TOPOLOGY, TRAITS, Settings())
    wrong = msgspec.structs.replace(made, buckets=(), stages=Stages())
    for _ in range(2):
        with pytest.raises(CoverageError, match="of weight are missed"):
            following.schedule(following.take(wrong.encode(), wrong.shape, "one"), 1)
    program = following.schedule(following.take(made.encode(), made.shape, "one"), 1)
    assert following.schedule(following.take(b"", made.shape, "two"), 1) is program


def test_given_a_follower_when_a_plan_takes_more_memory_than_it_has_then_it_refuses_it() -> None:
    gloo = {"gloo": GlooTransport.traits}
    topology = Topology(
        tuple(RankInfo(rank, role, "here", 1 << 20, ("gloo",)) for rank, role in enumerate((Role.SOURCE, Role.SINK)))
    )
    made = PlanCache(1 << 20).make([shard("one")], topology, gloo, Settings())
    with pytest.raises(BudgetError, match="has a budget of 1,000"):
        PlanCache(1000).schedule(made, 1)
