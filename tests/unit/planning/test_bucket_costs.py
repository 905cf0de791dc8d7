"""What the host does for a bucket beside moving it was measured, and plans count with it."""

from __future__ import annotations

from msgspec.structs import replace

from ckpt_transport.planning import IN_PLACE, Plan, Settings, Topology, plan
from ckpt_transport.rates import HostLink, HostRates, LinkKind, LinkRate
from tests.unit.planning.test_bucket_sizes import GIB, MIB, TRAITS, beside, version
from tests.unit.worlds import INVENTED, manifest, topology

COST = 1e-3
"""Seconds for a bucket."""
PEER = 4e11
LINKS = tuple(
    LinkRate(link, rate)
    for link, rate in {
        HostLink(LinkKind.MEMORY): 1e11,
        HostLink(LinkKind.DEVICE, "gpu a", "gpu a"): 2e12,
        HostLink(LinkKind.DEVICE, "gpu b", "gpu b"): 2e12,
        HostLink(LinkKind.PEER, "gpu a", "gpu b"): PEER,
        HostLink(LinkKind.TO_DEVICE, target="gpu a"): 5e10,
        HostLink(LinkKind.TO_DEVICE, target="gpu b"): 5e10,
    }.items()
)


def made(fleet: Topology, seconds: float, transport: str = "auto", bucket_bytes: int = 64 * MIB) -> Plan:
    settings = Settings(transport=transport, bucket_bytes=bucket_bytes)
    return plan(version(8 * GIB), fleet, TRAITS, settings, {"host": HostRates(LINKS, seconds)})


def test_given_more_buckets_than_the_host_keeps_up_with_then_these_are_what_the_plan_waits_for() -> None:
    small = made(beside(GIB), COST, "nccl", 4 * MIB)
    assert small.prediction.busy >= len(small.buckets) * COST
    assert small.prediction.link in ("what rank 0 sends", "what rank 1 receives")
    assert made(beside(GIB), 0.0, "nccl", 4 * MIB).prediction.seconds < small.prediction.seconds / 5


def test_given_memory_for_longer_buckets_then_the_link_is_what_the_plan_waits_for() -> None:
    long = made(beside(30 * GIB), COST / 4, "nccl")
    assert long.prediction.busy == 8 * GIB // (3 * MIB) * 3 * MIB / PEER
    assert "GPU" in long.prediction.link


def test_given_an_engine_that_reads_the_trainers_gpu_then_auto_has_it_read_in_few_buckets() -> None:
    trainer, engine = beside(30 * GIB).participants
    reads = Topology((trainer, replace(engine, reads=("gpu a",))))
    found = made(reads, COST)
    assert [route.transport for route in found.routes] == ["cuda_ipc"]
    assert all(bucket.fill_slot == bucket.slot == IN_PLACE for bucket in found.buckets)
    assert len(found.buckets) <= 5


def test_given_a_source_that_sends_each_bucket_in_two_ways_then_it_counts_once() -> None:
    """Given a relay, then the source broadcasts to another host, and sinks beside it map what it sends."""
    hosts = {name: HostRates((LinkRate(HostLink(LinkKind.MEMORY), 1e12),), COST) for name in "ab"}
    settings = Settings(transport="wire+window", bucket_bytes=1024)
    found = plan(manifest([1024] * 64), topology(["a"], "abb"), INVENTED, settings, hosts)
    assert {route.transport for route in found.routes} == {"wire", "window"}
    assert len(found.buckets) * COST <= found.prediction.busy < 1.5 * len(found.buckets) * COST
