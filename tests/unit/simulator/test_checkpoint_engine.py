"""checkpoint-engine's schedule, in a world whose times can be counted."""

from __future__ import annotations

import pytest

from ckpt_transport.planning import TensorSpec
from ckpt_transport.simulator import Cluster, SimulatedWorld, world_of
from ckpt_transport.simulator.checkpoint_engine import PackedBucket, checkpoint_engine, packed
from ckpt_transport.simulator.cluster import Costs, HostLinks, TransportRates

SPECS = [TensorSpec(f"w{number}", "U8", (100,)) for number in range(8)]
FAST = 1e15


def two_gpus(**links: float) -> SimulatedWorld:
    rates = dict.fromkeys(("nic", "memory", "loopback", "to_device", "from_device", "device", "peer"), FAST) | links
    return world_of(
        Cluster(
            hosts=1,
            gpus=2,
            transports=("nccl",),
            links=HostLinks(**rates),
            costs=Costs(network=0, bucket=0),
            transport={"nccl": TransportRates(bandwidth=FAST)},
        ),
        2,
    )


def test_given_two_ranks_then_each_brings_half_in_buckets_of_whole_tensors() -> None:
    assert packed(SPECS, 2, 250) == [[PackedBucket(2, 200), PackedBucket(2, 200)]] * 2


def test_given_a_slow_way_to_gpus_then_all_ranks_bring_theirs_at_the_same_time() -> None:
    run = checkpoint_engine(SPECS, two_gpus(to_device=100), 400, 2, piece=0.0)
    assert run.seconds == pytest.approx(4)
    assert run.resources[0].name.startswith("host0 to GPU")


def test_given_slow_loaders_then_a_broadcast_hides_behind_the_reload_before() -> None:
    # Two buckets of 4 tensors: the broadcast of the second takes 2 s, while the first is loaded for 4 s.
    run = checkpoint_engine(SPECS, two_gpus(peer=200), 400, 2, piece=1.0)
    assert run.seconds == pytest.approx(2 + 4 + 4)
    assert run.resources[0].name.startswith("loader of rank")


def test_given_an_update_by_p2p_then_buckets_come_over_the_network() -> None:
    run = checkpoint_engine(SPECS, two_gpus(nic=100), 800, 1, receivers=1, piece=0.0)
    assert run.seconds == pytest.approx(8)
    assert "host0" in run.resources[0].name
    assert run.resources[0].nbytes == pytest.approx(800)
