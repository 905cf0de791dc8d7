"""Wires are the links of a world, and the paths that bytes take over them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from ckpt_transport.planning.loads import KERNEL_COPIES
from ckpt_transport.rates import LinkKind
from ckpt_transport.simulator.flows import Path, SharedLink
from ckpt_transport.simulator.world import SimulatedWorld, host_name
from ckpt_transport.transports.interface import Reach, Traits


class Location(NamedTuple):
    """Where bytes lie: in the memory of a host, by its number, or of one of its GPUs."""

    host: int
    device: str = ""


class Wires:
    """Makes each link of a world when the first path needs it.

    Args:
        world: what there is.
    """

    def __init__(self, world: SimulatedWorld) -> None:
        self._world, self._cluster = world, world.cluster
        self.links: dict[str, SharedLink] = {}
        self._homes = [
            Location(host, participant.device)
            for (host, *_), participant in zip(world.places, world.topology.participants, strict=True)
        ]

    def home(self, rank: int) -> Location:
        """Where an engine has its weights."""
        return self._homes[rank]

    def copied(self, source: Location, target: Location, times: float = 1.0) -> Path:
        """The path of a copy within a host."""
        host = host_name(source.host)
        if not source.device and not target.device:
            return {self._within(f"host memory of {host}", host, LinkKind.MEMORY): times}
        if not source.device:
            name = f"{host} to GPU {target.device}"
            return {self._within(name, host, LinkKind.TO_DEVICE, "", target.device): times}
        if not target.device:
            name = f"GPU {source.device} to {host}"
            return {self._within(name, host, LinkKind.FROM_DEVICE, source.device): times}
        if source.device == target.device:
            name = f"memory of GPU {source.device}"
            return {self._within(name, host, LinkKind.DEVICE, source.device, source.device): times}
        ends = source.device, target.device
        return {
            self._within(f"GPU {source.device} to other GPUs", host, LinkKind.PEER, *ends): times,
            self._within(f"other GPUs to GPU {target.device}", host, LinkKind.PEER, *ends): times,
        }

    def sent(self, traits: Traits, sender: int, receiver: int) -> Path:
        """The path from one rank to one other, by a transport that moves bytes."""
        here, there = self._world.places[sender][0], self._world.places[receiver][0]
        rate = traits.bandwidth
        path: dict[SharedLink, float] = {}
        if here == there:
            if traits.on_device:
                return self.copied(self.home(sender), self.home(receiver))
            if traits.reach is Reach.NETWORK:
                rate = max(rate, self._cluster.links.loopback)
            memory = self._within(f"host memory of {host_name(here)}", host_name(here), LinkKind.MEMORY)
            path[memory] = KERNEL_COPIES if traits.reach is Reach.NETWORK else 1.0
        else:
            path |= self._across(here, there)
            path[self._nic(sender, here, "out of")] = 1.0
            path[self._nic(receiver, there, "into")] = 1.0
        path[self._link(f"what rank {sender} sends", rate / self._cluster.factor(here))] = 1.0
        path[self._link(f"what rank {receiver} receives", rate / self._cluster.factor(there))] = 1.0
        return path

    def arriving(self, rank: int) -> Path:
        """The path of what a rank reads from many others, none of which sends much."""
        host = self._world.places[rank][0]
        everything = self._link(f"network into {host_name(host)}", self._cluster.nics * self._cluster.nic(host))
        return {self._nic(rank, host, "into"): 1.0, everything: 1.0}

    def pipelined(self, traits: Traits, ranks: Sequence[int]) -> Path:
        """The path of a broadcast in which every member passes on what arrives while it arrives; the sender is first.

        It uses all NICs of a host, and enters and leaves each host once.
        """
        places = self._world.places
        hosts = list(dict.fromkeys(places[rank][0] for rank in ranks))
        path: dict[SharedLink, float] = {self._link(f"what rank {ranks[0]} sends", traits.bandwidth): 1.0}
        for here, there in pairwise(hosts):
            path |= self._across(here, there)
        members = [places[rank][0] for rank in ranks]
        for host in hosts:
            if members.count(host) > 1:
                path[self._link(f"GPUs among each other on {host_name(host)}", self._peer_rate(host, traits))] = 1.0
        return path

    def _across(self, here: int, there: int) -> dict[SharedLink, float]:
        """The links between two hosts that all ranks of either share."""
        path = {
            self._link(f"network out of {host_name(here)}", self._cluster.nics * self._cluster.nic(here)): 1.0,
            self._link(f"network into {host_name(there)}", self._cluster.nics * self._cluster.nic(there)): 1.0,
        }
        racks = self._cluster.rack(here), self._cluster.rack(there)
        if self._cluster.racks and racks[0] != racks[1]:
            path[self._link(f"uplinks out of rack {racks[0]}", self._cluster.racks.uplink)] = 1.0
            path[self._link(f"uplinks into rack {racks[1]}", self._cluster.racks.uplink)] = 1.0
        return path

    def _nic(self, rank: int, host: int, way: str) -> SharedLink:
        number = self._world.places[rank][1] * self._cluster.nics // self._cluster.sinks_per_host % self._cluster.nics
        return self._link(f"NIC {number} {way} {host_name(host)}", self._cluster.nic(host))

    def _peer_rate(self, host: int, traits: Traits) -> float:
        """Of what members on one host pass on: by the links of GPUs, or through host memory."""
        links = self._cluster.links
        return (links.peer if traits.on_device else links.memory / KERNEL_COPIES) / self._cluster.factor(host)

    def _within(self, name: str, host: str, kind: LinkKind, source: str = "", target: str = "") -> SharedLink:
        return self._link(name, self._world.rates[host].rate(kind, source, target))

    def _link(self, name: str, rate: float) -> SharedLink:
        link = self.links.get(name)
        if link is None:
            link = self.links[name] = SharedLink(name, rate)
        return link
