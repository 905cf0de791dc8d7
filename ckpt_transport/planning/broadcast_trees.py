"""Broadcast trees bring a bucket from its owner to the sinks that need it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning.values.manifest import Extent
from ckpt_transport.planning.values.plan import Leg
from ckpt_transport.planning.values.topology import Topology
from ckpt_transport.transports.interface import Reach, Traits

ON_GPUS = frozenset({Reach.DEVICE, Reach.PEERS})
"""How far transports reach that map the memory of a GPU."""
SHARED = frozenset({MemoryKind.SHARED, MemoryKind.READABLE})
"""What can be sent by who has slots in shared memory only."""


class Link(NamedTuple):
    """A leg that has no route yet, and the transport that will carry it.

    Attributes:
        transport, sender, receivers: who sends by what to whom.
        device: the GPU whose memory the receivers map; empty where the transport does not map any.
        reads: receivers may read tensors in private memory of the sender's process.
        handed: receivers map memory that the sender hands them as open files.
    """

    transport: str
    sender: int
    receivers: tuple[int, ...]
    device: str = ""
    reads: bool = False
    handed: bool = False

    @property
    def ranks(self) -> tuple[int, ...]:
        return (self.sender, *self.receivers)

    def leg(self, route: int) -> Leg:
        return Leg(route, self.sender, self.receivers)


@dataclass(frozen=True, slots=True)
class BroadcastTree:
    """The hops from one owner to a receiver set. The links of a hop carry a bucket at the same time."""

    name: str
    hops: tuple[tuple[Link, ...], ...]

    @property
    def ranks(self) -> frozenset[int]:
        """Everybody who takes part."""
        return frozenset(rank for hop in self.hops for link in hop for rank in link.ranks)

    def fills(self, extent: Extent, traits: Mapping[str, Traits]) -> bool:
        """Whether a bucket of ``extent`` has to be copied into a slot before its first hop."""
        return any(
            extent.kind not in traits[link.transport].sends_from
            or (extent.device and extent.device != link.device)
            or (extent.kind is MemoryKind.READABLE and not link.reads)
            or (extent.kind is MemoryKind.PAGED and not link.handed)
            for link in self.hops[0]
        )

    def senders_from_shared_slots(self, extent: Extent, traits: Mapping[str, Traits]) -> frozenset[int]:
        """The ranks whose slots lie in shared memory, because what they send by can send from nothing else."""
        senders = {link.sender for hop in self.hops for link in hop if traits[link.transport].sends_from <= SHARED}
        return frozenset(senders if self.fills(extent, traits) else senders - {extent.owner})


@dataclass(frozen=True, slots=True)
class Rejected:
    """The name of a tree that cannot carry this update, and the reason."""

    name: str
    reason: str


def direct_and_relayed(
    owner: int, sinks: Sequence[int], topology: Topology, traits: Mapping[str, Traits], lies_on: str = ""
) -> Iterator[BroadcastTree | Rejected]:
    """Yield every tree from ``owner`` to ``sinks`` that one or two transports make, other than chain broadcasts.

    They are called ``shm``, ``gloo+shm``, ``nccl+cuda_ipc``.

    Args:
        owner, sinks: where it begins and ends.
        topology, traits: what there is.
        lies_on: the GPU on which the owner's bytes can be mapped where they lie; empty for none.
    """
    for name in sorted(traits):
        yield direct(name, owner, sinks, topology, traits, lies_on)
    for outer in sorted(traits):
        for inner in sorted(traits):
            if outer != inner and traits[outer].reach is Reach.NETWORK and traits[inner].reach is not Reach.NETWORK:
                yield relayed(outer, inner, owner, sinks, topology, traits)


def direct(
    name: str, owner: int, sinks: Sequence[int], topology: Topology, traits: Mapping[str, Traits], lies_on: str = ""
) -> BroadcastTree | Rejected:
    """Make the tree of one hop, from the owner to all ``sinks``."""
    device = ""
    if traits[name].reach is not Reach.NETWORK:
        far = [rank for rank in sinks if topology.host(rank) != topology.host(owner)]
        if far:
            return Rejected(name, f"stays within a host, and sinks {far[:4]} are on other hosts than source {owner}")
    if traits[name].reach in ON_GPUS:
        device = _mapped_device(owner, sinks, topology, traits[name].reach, lies_on)
        if not device:
            return Rejected(name, _why_unreachable(owner, sinks, topology, traits[name].reach))
    members = topology.participants
    reads = not any(members[rank].why_not_read(members[owner]) for rank in sinks)
    handed = not any(members[rank].why_not_handed(members[owner]) for rank in sinks)
    return checked(name, ((Link(name, owner, tuple(sinks), device, reads, handed),),), topology, traits)


def _mapped_device(owner: int, sinks: Sequence[int], topology: Topology, reach: Reach, lies_on: str) -> str:
    """The GPU whose memory all ``sinks`` can map, where the owner's bytes lie or its slots can be; empty for none.

    Of several that sinks are on it is the owner's own, where it has one to itself: sources that fill slots of different
    GPUs have as many links to the host.
    """
    members = [topology.participants[rank] for rank in sinks]
    usable = topology.participants[owner].devices
    near = sorted({member.device for member in members} & set(usable), key=usable.index)
    if near:
        alike = [rank for rank in topology.sources if topology.participants[rank].devices == usable]
        turn = alike.index(owner) % len(near)
        near = near[turn:] + near[:turn]
    for device in (lies_on, *near, *usable):
        if device in usable and all(
            member.device == device or (reach is Reach.PEERS and member.can_read(device)) for member in members
        ):
            return device
    return ""


def _why_unreachable(owner: int, sinks: Sequence[int], topology: Topology, reach: Reach) -> str:
    devices = {topology.participants[rank].device for rank in sinks}
    if len(devices) == 1:
        return f"source {owner} cannot use the GPU that sinks are on"
    if reach is Reach.DEVICE:
        return f"stays within a GPU, and sinks are on {len(devices)} of them"
    return f"sinks are on {len(devices)} GPUs, and source {owner} uses none whose memory all of these can read"


def relayed(
    outer: str, inner: str, owner: int, sinks: Sequence[int], topology: Topology, traits: Mapping[str, Traits]
) -> BroadcastTree | Rejected:
    """Make a relay: ``outer`` goes to one rank of every other site, and ``inner`` stays within a site.

    A site is as far as ``inner`` reaches. A source passes on at its site, so that sinks there need no slots; at a site
    without one the first sink does.
    """
    name = f"{outer}+{inner}"
    if traits[outer].maps_memory:
        return Rejected(name, f"what {outer} brings is mapped, so a relay has nothing of its own to pass on")
    on_device = traits[outer].on_device or traits[inner].on_device
    if on_device and not traits[outer].sends_from & traits[inner].sends_from:
        return Rejected(name, f"{outer} and {inner} do not move the same kind of memory")
    what = "GPU" if traits[inner].reach in ON_GPUS else "host"
    sites: dict[tuple[str, str], list[int]] = {}
    for rank in sinks:
        sites.setdefault(_site(rank, topology, traits[inner].reach), []).append(rank)
    near = tuple(sites.pop(_site(owner, topology, traits[inner].reach), ()))
    if not sites:
        return Rejected(name, f"all sinks are on the {what} of source {owner}, so there is nothing to relay")
    sources = {_site(rank, topology, traits[inner].reach): rank for rank in reversed(topology.sources)}
    relays = {site: sources.get(site, ranks[0]) for site, ranks in sites.items()}
    first = [Link(outer, owner, tuple(relays.values()))]
    if near:
        first.append(Link(inner, owner, near, _site(near[0], topology, traits[inner].reach)[1]))
    served = {relays[site]: tuple(rank for rank in ranks if rank != relays[site]) for site, ranks in sites.items()}
    second = [
        Link(inner, relay, ranks, _site(ranks[0], topology, traits[inner].reach)[1])
        for relay, ranks in served.items()
        if ranks
    ]
    if not second and not near:
        return Rejected(name, f"every {what} has one sink, so there is nothing to pass on")
    return checked(name, (tuple(first), *([tuple(second)] if second else [])), topology, traits)


def _site(rank: int, topology: Topology, reach: Reach) -> tuple[str, str]:
    """Where a rank is, as far as a transport of that reach can tell."""
    member = topology.participants[rank]
    return member.host, member.device if reach in ON_GPUS else ""


def checked(
    name: str, hops: tuple[tuple[Link, ...], ...], topology: Topology, traits: Mapping[str, Traits]
) -> BroadcastTree | Rejected:
    """Make the tree of these hops, if every rank has the transports that reach it."""
    for hop in hops:
        for link in hop:
            if not topology.can_use(link.transport).issuperset(link.ranks):
                rank = next(rank for rank in link.ranks if rank not in topology.can_use(link.transport))
                return Rejected(name, f"{link.transport} is not available at rank {rank}")
            if traits[link.transport].on_device and not topology.with_devices.issuperset(link.ranks):
                rank = next(rank for rank in link.ranks if rank not in topology.with_devices)
                return Rejected(name, f"{link.transport} moves GPU memory, and rank {rank} has none")
            if traits[link.transport].one_rank_per_device:
                devices = [topology.participants[rank].device for rank in link.ranks]
                if len(set(devices)) < len(devices):
                    return Rejected(
                        name, f"{link.transport} takes one rank of each GPU, and ranks {link.ranks} share some"
                    )
    return BroadcastTree(name, hops)
