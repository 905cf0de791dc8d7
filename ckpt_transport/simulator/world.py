"""A world is a cluster with its ranks: what the planner is told of it, and which links lie between whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ckpt_transport.checkpoint import outline
from ckpt_transport.checkpoint.checkpoint import CheckpointFile
from ckpt_transport.errors import ConfigError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import Manifest, MeasuredRates, RankInfo, Role, Share, Topology
from ckpt_transport.planning.values.topology import EVERYTHING
from ckpt_transport.rates import HostLink, HostRates, LinkKind, LinkRate
from ckpt_transport.simulator.cluster import Cluster
from ckpt_transport.transports import registry
from ckpt_transport.transports.interface import Traits


@dataclass(frozen=True)
class SimulatedWorld:
    """A cluster with its ranks.

    Attributes:
        cluster: the hosts.
        topology: the ranks.
        traits: of every transport that they have.
        rates: of the links of every host.
        places: of each rank, the number of its host, and its number among the ranks of its role there.
    """

    cluster: Cluster
    topology: Topology
    traits: dict[str, Traits]
    rates: MeasuredRates
    places: tuple[tuple[int, int], ...]


def world_of(cluster: Cluster, sources: int, shares: Sequence[Share] = ()) -> SimulatedWorld:
    """Put sinks on all hosts, and sources on as many as there are sources for, evenly.

    Args:
        cluster: the hosts.
        sources: how many.
        shares: what sinks need, in turn; none where each needs everything.

    Raises:
        ConfigError: more sources than the hosts have GPUs for.
    """
    per_host = -(-sources // cluster.hosts)
    if cluster.gpus and per_host > cluster.gpus:
        most = cluster.gpus * cluster.hosts
        raise ConfigError(f"{sources} sources do not fit on {cluster.hosts} hosts of {cluster.gpus} GPUs; give {most}")
    places = [(number * cluster.hosts // sources, number % per_host) for number in range(sources)]
    sinks = cluster.sinks_per_host
    places += [(host, number) for host in range(cluster.hosts) for number in range(sinks)]
    participants = []
    for rank, (host, position) in enumerate(places):
        role = Role.SOURCE if rank < sources else Role.SINK
        gpus = [gpu_name(host, number) for number in range(cluster.gpus)]
        own = gpus[position % len(gpus)] if gpus else ""
        participants.append(
            RankInfo(
                rank,
                role,
                host_name(host),
                cluster.memory,
                cluster.transports,
                label=f"{role} {position} of {host_name(host)}",
                devices=(own,) if own else (),
                reads=tuple(gpu for gpu in gpus if gpu != own),
                share=(rank - sources) % len(shares) if role is Role.SINK and shares else EVERYTHING,
            )
        )
    traits = {name: _traits(name, cluster) for name in cluster.transports}
    rates = {host_name(host): _rates(cluster, host) for host in range(cluster.hosts)}
    return SimulatedWorld(cluster, Topology(tuple(participants), tuple(shares)), traits, rates, tuple(places))


def manifest_of(world: SimulatedWorld, files: Sequence[CheckpointFile], version: str = "next") -> Manifest:
    """What the sources hold of a checkpoint, in shared host memory."""
    return outline(version, files, len(world.topology.sources), MemoryKind.SHARED)


def host_name(host: int) -> str:
    return f"host{host}"


def gpu_name(host: int, number: int) -> str:
    return f"{host}.{number}"


def _traits(name: str, cluster: Cluster) -> Traits:
    traits, given = registry.load(name).traits, cluster.transport.get(name)
    if given is None:
        return traits
    return msgspec.structs.replace(
        traits,
        bandwidth=traits.bandwidth if given.bandwidth is None else given.bandwidth,
        latency=traits.latency if given.latency is None else given.latency,
        one_rank_per_device=traits.one_rank_per_device,
    )


def _rates(cluster: Cluster, host: int) -> HostRates:
    """What a measurement of that host would have found."""
    links, slower = cluster.links, cluster.factor(host)
    gpus = [gpu_name(host, number) for number in range(cluster.gpus)]
    found = {
        HostLink(LinkKind.MEMORY): links.memory,
        HostLink(LinkKind.LOOPBACK): links.loopback,
        HostLink(LinkKind.NETWORK): cluster.nic(host) * cluster.nics * slower,
    }
    for gpu in gpus:
        found[HostLink(LinkKind.TO_DEVICE, target=gpu)] = links.to_device
        found[HostLink(LinkKind.FROM_DEVICE, source=gpu)] = links.from_device
        found[HostLink(LinkKind.DEVICE, gpu, gpu)] = links.device
        found |= {HostLink(LinkKind.PEER, gpu, other): links.peer for other in gpus if other != gpu}
    return HostRates(tuple(LinkRate(link, rate / slower) for link, rate in found.items()))
