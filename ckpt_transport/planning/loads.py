"""Loads say what each byte and each bucket asks of the links that it crosses.

A leg is more than its transport: a bucket of a source in host memory that a sink on a GPU maps crosses no wire at all,
and PCIe when it is applied. So bytes are followed from where they lie to where the engine has them, and each copy on
the way is put on the link that it uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning.broadcast_trees import BroadcastTree, Link
from ckpt_transport.planning.links import Links
from ckpt_transport.planning.values.manifest import Extent
from ckpt_transport.planning.values.topology import EVERYTHING, Topology
from ckpt_transport.rates import LinkKind
from ckpt_transport.transports.interface import FanOut, Reach, Traits

_COPIES: Mapping[FanOut, Callable[[int], float]] = {
    FanOut.CONSTANT: lambda receivers: 1.0,
    FanOut.TREE: lambda receivers: math.log2(receivers + 1),
    FanOut.LINEAR: lambda receivers: float(receivers),
}
KERNEL_COPIES = 2.0
"""A transport over sockets copies into the kernel and out of it again."""


class Crossed(NamedTuple):
    """A link that bytes cross, in words with places for ``of`` and ``to``."""

    words: str
    of: str
    to: str = ""

    def __str__(self) -> str:
        return self.words.format(self.of, self.to)


MEMORY = "host memory of {}"
TO_DEVICE = "{} to GPU {:.8}"
FROM_DEVICE = "GPU {1:.8} to {0}"
DEVICE = "memory of GPU {:.8}"
PEER_OUT = "GPU {:.8} to other GPUs"
PEER_IN = "other GPUs to GPU {:.8}"
NETWORK_OUT = "network out of {}"
NETWORK_IN = "network into {}"
SENDS = "what rank {} sends"
RECEIVES = "what rank {} receives"


@dataclass(slots=True)
class Load:
    """What one link is asked for.

    Attributes:
        bytes_per_byte: bytes that cross it for each byte of a bucket.
        seconds_per_byte, seconds_per_bucket: how long it is busy for each.
        measured: whether its rate was.
    """

    bytes_per_byte: float = 0.0
    seconds_per_byte: float = 0.0
    seconds_per_bucket: float = 0.0
    measured: bool = True


class Loads(dict[Crossed, Load]):
    """What happens to a bucket at the same time: the load of each link. Trees share it where they are alike."""

    def put(self, link: Crossed, times: float, rate: tuple[float, bool], per_bucket: float = 0.0) -> None:
        """Have each byte cross ``link`` so many times, at ``rate`` bytes per second, which was measured or not."""
        load = self.get(link)
        if load is None:
            load = self[link] = Load()
        load.bytes_per_byte += times
        load.seconds_per_byte += times / rate[0]
        load.seconds_per_bucket += per_bucket
        load.measured = load.measured and rate[1]

    def seconds(self, nbytes: float) -> float:
        """How long one bucket of that size takes."""
        return max((nbytes * per_byte + per_bucket for per_byte, per_bucket in self._different), default=0.0)

    @cached_property
    def _different(self) -> AbstractSet[tuple[float, float]]:
        """The seconds per byte and per bucket that occur: those of many links are alike."""
        return {(load.seconds_per_byte, load.seconds_per_bucket) for load in self.values()}


class _Location(NamedTuple):
    """Where bytes lie: in the memory of a host, or of one of its GPUs."""

    host: str
    device: str = ""


class LoadCounter:
    """Counts what buckets ask of links on their way along trees. What trees of several owners share is counted once.

    Args:
        topology, traits, links: what there is.
        digests: whether owners and sinks also read each bucket for its digest.
    """

    def __init__(self, topology: Topology, traits: Mapping[str, Traits], links: Links, digests: bool) -> None:
        self._topology, self._traits, self._links = topology, traits, links
        self._reads = 1.0 if digests else 0.0
        self._homes = [_Location(member.host, member.device) for member in topology.participants]
        self._hosts = [_Location(member.host) for member in topology.participants]
        self._sends = [Crossed(SENDS, str(member.rank)) for member in topology.participants]
        self._receives = [Crossed(RECEIVES, str(member.rank)) for member in topology.participants]
        self._hops: dict[AbstractSet[tuple[Link, _Location]], tuple[Loads, dict[int, _Location]]] = {}
        self._received: dict[tuple[str, tuple[int, ...]], tuple[Loads, dict[int, _Location]]] = {}
        self._applies: dict[Hashable, Loads] = {}

    def stages(self, tree: BroadcastTree, extent: Extent, takes: Mapping[int, float]) -> list[Loads]:
        """What a bucket of ``extent`` asks for: when it is filled, in each hop, when it is applied.

        Args:
            tree: from the extent's owner.
            extent: where buckets come from.
            takes: the sinks that apply them, and how much of what they are brought each takes in, from 0 to 1.
        """
        owner = extent.owner
        lies = {owner: self._origin(extent)}
        maps = {
            rank
            for hop in tree.hops
            for link in hop
            if self._traits[link.transport].maps_memory
            for rank in link.receivers
        }
        compared = {rank: part if rank in maps else 1.0 for rank, part in takes.items()}
        stages: list[Loads] = []
        if tree.fills(extent, self._traits):
            slot = self._fill_slot(owner, tree.hops[0])
            stages.append(Loads())
            self._copy(stages[-1], lies[owner], slot)
            lies[owner] = slot
        stages.append(Loads())
        self._read(stages[-1], lies[owner], self._distinct(compared, maps))
        for link in tree.hops[0]:
            self._leg(stages[-1], link, lies)
        for hop in tree.hops[1:]:
            loads, brought = self._onward(hop, lies)
            stages.append(loads)
            lies.update(brought)
        stages.append(self._applied(takes, compared, [lies[rank] for rank in takes]))
        return stages

    def _onward(self, hop: Sequence[Link], lies: Mapping[int, _Location]) -> tuple[Loads, dict[int, _Location]]:
        """What a hop from sinks asks for, and where its receivers have the bytes then."""
        key = frozenset((link, lies[link.sender]) for link in hop)
        if key not in self._hops:
            loads, places = Loads(), {link.sender: lies[link.sender] for link in hop}
            for link in hop:
                self._leg(loads, link, places)
            self._hops[key] = loads, {rank: places[rank] for link in hop for rank in link.receivers}
        return self._hops[key]

    def _applied(self, takes: Mapping[int, float], compared: Mapping[int, float], lies: Sequence[_Location]) -> Loads:
        """What applying asks for, of sinks that have the bytes at these places."""
        key = tuple(takes.items()), tuple(compared.values()), tuple(lies)
        if key not in self._applies:
            loads = self._applies[key] = Loads()
            for (rank, part), source in zip(takes.items(), lies, strict=True):
                self._apply(loads, source, self._home(rank), part)
                self._read(loads, self._home(rank), compared[rank])
        return self._applies[key]

    def _distinct(self, compared: Mapping[int, float], maps: AbstractSet[int]) -> float:
        """How often an owner reads a byte: for all who get whole buckets once, and for each share that is read."""
        return sum(
            {
                self._topology.participants[rank].share if rank in maps else EVERYTHING: part
                for rank, part in compared.items()
            }.values()
        )

    # -- where bytes lie ------------------------------------------------------------------------------------------

    def _home(self, rank: int) -> _Location:
        """Where an engine has its weights, and a trainer those that it lends."""
        return self._homes[rank]

    def _origin(self, extent: Extent) -> _Location:
        if extent.device or extent.kind not in (MemoryKind.CUDA, MemoryKind.SCATTERED):
            return _Location(self._topology.host(extent.owner), extent.device)
        return self._home(extent.owner)

    def _slot(self, rank: int, traits: Traits) -> _Location:
        """Where a transport has its slots: on a GPU if it can send from there, and the rank has one."""
        return self._home(rank) if MemoryKind.CUDA in traits.sends_from else self._hosts[rank]

    def _fill_slot(self, owner: int, hop: Sequence[Link]) -> _Location:
        """Where buckets are filled into: receivers that map the memory of a GPU need them there."""
        for link in hop:
            if link.device:
                return _Location(self._topology.host(owner), link.device)
        return self._slot(owner, self._traits[hop[0].transport])

    # -- what bytes cross -----------------------------------------------------------------------------------------

    def _apply(self, loads: Loads, source: _Location, target: _Location, part: float) -> None:
        """Put an apply on its link: a copy of what is needed."""
        self._copy(loads, source, target, times=part)

    def _read(self, loads: Loads, where: _Location, part: float) -> None:
        """Put reading a part of a bucket for its digest on the memory that it lies in, where it counts as a copy."""
        if self._reads:
            self._copy(loads, where, where, self._reads * part)

    def _copy(self, loads: Loads, source: _Location, target: _Location, times: float = 1.0, sent: float = 1.0) -> None:
        """Put a copy within one host on the link that it uses; a GPU sends it ``sent`` times."""
        host, rate = source.host, self._links.rate
        if not source.device and not target.device:
            loads.put(Crossed(MEMORY, host), times, rate(host, LinkKind.MEMORY))
        elif not source.device:
            loads.put(Crossed(TO_DEVICE, host, target.device), times, rate(host, LinkKind.TO_DEVICE, "", target.device))
        elif not target.device:
            loads.put(Crossed(FROM_DEVICE, host, source.device), times, rate(host, LinkKind.FROM_DEVICE, source.device))
        elif source.device == target.device:
            loads.put(Crossed(DEVICE, source.device), times, rate(host, LinkKind.DEVICE, source.device, source.device))
        else:
            peer = rate(host, LinkKind.PEER, source.device, target.device)
            loads.put(Crossed(PEER_OUT, source.device), times * sent, peer)
            loads.put(Crossed(PEER_IN, target.device), times, peer)

    def _leg(self, loads: Loads, link: Link, lies: dict[int, _Location]) -> None:
        """Put one leg on the links that it uses, and note where its receivers have the bytes then."""
        traits, sender = self._traits[link.transport], link.sender
        here = self._topology.host(sender)
        near = [rank for rank in link.receivers if self._hosts[rank].host == here]
        far = tuple(rank for rank in link.receivers if self._hosts[rank].host != here)
        copies = _COPIES[traits.fan_out]
        self._end(loads, self._sends[sender], sender, copies(len(link.receivers)), traits, far=bool(far))
        for rank in near:
            self._end(loads, self._receives[rank], rank, 1, traits, far=False)
            if traits.maps_memory:
                lies[rank] = lies[sender]
                continue
            lies[rank] = self._slot(rank, traits)
            if not traits.on_device:
                through = KERNEL_COPIES if traits.reach is Reach.NETWORK else 1.0
                loads.put(Crossed(MEMORY, here), through, self._links.rate(here, LinkKind.MEMORY))
            if traits.on_device or lies[rank].device:
                self._copy(loads, lies[sender], lies[rank], sent=copies(len(near)) / len(near))
        hosts = [self._hosts[rank].host for rank in far]
        if traits.fan_out is FanOut.CONSTANT and not traits.maps_memory:
            hosts = list(dict.fromkeys(hosts))  # what enters a host once is passed on within it
        for host in hosts:
            self._network(loads, NETWORK_IN, host, 1)
        if far:
            received, places = self._far(link.transport, far)
            loads.update(received)
            lies.update(places)
            self._network(loads, NETWORK_OUT, here, copies(len(far)))

    def _far(self, transport: str, ranks: tuple[int, ...]) -> tuple[Loads, dict[int, _Location]]:
        """What ranks on other hosts than the sender's receive, and where; each does so once in a hop."""
        if (transport, ranks) not in self._received:
            traits, loads = self._traits[transport], Loads()
            for rank in ranks:
                self._end(loads, self._receives[rank], rank, 1, traits, far=True)
            places = {rank: self._hosts[rank] if traits.maps_memory else self._slot(rank, traits) for rank in ranks}
            self._received[transport, ranks] = loads, places
        return self._received[transport, ranks]

    def _end(self, loads: Loads, link: Crossed, rank: int, times: float, traits: Traits, *, far: bool) -> None:
        """Put a transfer on one of its ends, which the transport drives, and what the host does for each bucket there.

        Nothing moves to be mapped within a host.
        """
        host, own = self._topology.host(rank), self._topology.participants[rank].link
        rate = traits.bandwidth, False
        if far:
            rate = min(traits.bandwidth, own or traits.bandwidth), False
        elif traits.maps_memory or (traits.on_device and self._links.measured(host)):
            times = 0.0
        elif traits.reach is Reach.NETWORK:
            rate = max(rate, self._links.rate(host, LinkKind.LOOPBACK))
        accounted = 0.0 if link in loads else self._links.bucket_seconds(host)  # however many it is sent to
        loads.put(link, times, rate, traits.latency + accounted)

    def _network(self, loads: Loads, words: str, host: str, times: float) -> None:
        """Put a transfer on what the network devices of a host bring together, if they say it."""
        rate = self._links.rate(host, LinkKind.NETWORK)
        if rate[0]:
            loads.put(Crossed(words, host), times, rate)
