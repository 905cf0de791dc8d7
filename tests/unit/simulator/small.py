"""Small clusters for tests, whose times can be counted by hand."""

from __future__ import annotations

from typing import Any

import msgspec

from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import Extent, Manifest, PlacedTensor, Plan, Settings, TensorSpec, plan, verify
from ckpt_transport.simulator import Cluster, SimulatedWorld, world_of
from ckpt_transport.simulator.cluster import Costs, HostLinks
from ckpt_transport.transports.interface import FanOut, Reach, Traits

MIB = 1 << 20
FREE = Costs(network=0, bucket=0, receiver=0, apply=0, piece=0)
"""Processors that take no time."""
FAST = 1e15


def cluster(hosts: int, nic: float = MIB, **others: Any) -> Cluster:
    """Hosts with one sink each and a NIC of that many bytes per second; nothing else takes time."""
    links = HostLinks(nic=nic, memory=others.pop("memory", FAST), loopback=FAST)
    given = {"transports": ("gloo", "shm"), "costs": FREE, "sinks": 1, **others}
    return Cluster(hosts=hosts, links=links, **given)


def world(of: Cluster, sources: int = 1, fan_out: FanOut = FanOut.LINEAR, at_once: int = 0) -> SimulatedWorld:
    """Its ranks, with a network transport that is as fast as the links."""
    made = world_of(of, sources)
    network = Traits(
        reach=Reach.NETWORK,
        sends_from=frozenset({MemoryKind.PRIVATE, MemoryKind.SHARED}),
        fan_out=fan_out,
        bandwidth=FAST,
        latency=0.0,
        at_once=at_once,
    )
    return SimulatedWorld(made.cluster, made.topology, made.traits | {"gloo": network}, made.rates, made.places)


def version(mebibytes: int) -> Manifest:
    """One tensor of 1 MiB after the other, at source 0."""
    tensors = [
        PlacedTensor(TensorSpec(f"w{number}", "U8", (MIB,)), 0, number * MIB, MIB) for number in range(mebibytes)
    ]
    return Manifest("next", (Extent(0, mebibytes * MIB, MemoryKind.SHARED),), tuple(tensors))


def planned(of: SimulatedWorld, mebibytes: int, transport: str = "gloo", **chosen: Any) -> Plan:
    """A plan that moves so many buckets of 1 MiB."""
    settings = msgspec.structs.replace(Settings(transport=transport, bucket_bytes=MIB), **chosen)
    made = plan(version(mebibytes), of.topology, of.traits, settings, of.rates)
    verify(made)
    return made
