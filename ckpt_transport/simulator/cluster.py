"""A cluster file says which hosts there are, what is in each, and how fast its links are."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from ckpt_transport.decoding import prepared
from ckpt_transport.errors import ConfigError

Rate = Annotated[float, msgspec.Meta(gt=0)]
"""Bytes per second."""
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Several = Annotated[int, msgspec.Meta(ge=1)]
Kind = TypeVar("Kind", bound=msgspec.Struct)

INCLUDED = files("ckpt_transport.simulator") / "clusters"


class HostLinks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes per second of the links of one host.

    Attributes:
        nic: of each of its NICs, in each direction.
        memory: of a copy within host memory, by all cores.
        loopback: of one connection within the host.
        to_device, from_device: between host memory and one GPU.
        device: of a copy within the memory of one GPU.
        peer: out of one GPU to others of the host, and into it.
    """

    nic: Rate
    memory: Rate = 20e9
    loopback: Rate = 2e9
    to_device: Rate = 50e9
    from_device: Rate = 50e9
    device: Rate = 1e12
    peer: Rate = 100e9


class Costs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds that processors need, whatever the number of bytes.

    Attributes:
        network: from one host to another, for each bucket.
        bucket: of the thread of a rank that drives transfers, for each transfer that it takes part in.
        receiver: of that thread, for each receiver of what it sends.
        apply: of the thread that applies, for each bucket.
        piece: of that thread, for each piece of a tensor in it.
    """

    network: Seconds = 10e-6
    bucket: Seconds = 100e-6
    receiver: Seconds = 0.0
    apply: Seconds = 50e-6
    piece: Seconds = 0.0


class Racks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hosts behind switches that have fewer uplinks than hosts.

    Attributes:
        hosts: in each rack; they are numbered rack by rack.
        uplink: bytes per second out of a rack, and into it.
    """

    hosts: Several
    uplink: Rate


class TransportRates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one transport does in this cluster, where that differs from what its plugin says of itself.

    Attributes:
        bandwidth: bytes per second of one rank.
        latency: seconds one transfer costs whatever its size.
        buffered: bytes that a connection between hosts takes in before they arrive, in buffers of sockets and queues.
        turnaround: seconds from when a receiver has room for a bucket until its bytes begin to come, or from when it
            has read a slot that it maps until that is filled again: a sender that is told so first, and both ends'
            threads.
    """

    bandwidth: Rate | None = None
    latency: Seconds | None = None
    buffered: Annotated[int, msgspec.Meta(ge=0)] = 0
    turnaround: Seconds = 0.0


AS_ITS_PLUGIN_SAYS = TransportRates()


class Slower(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hosts that are slower than the others.

    Attributes:
        hosts: their numbers, from 0.
        times: all of their links are slower by this factor, and their processors, too.
        nic: bytes per second of each of their NICs, where only these differ.
    """

    hosts: tuple[int, ...]
    times: Annotated[float, msgspec.Meta(ge=1)] = 1.0
    nic: Rate | None = None


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cluster.

    Attributes:
        hosts: how many.
        gpus: in each; 0 for engines on processors.
        sinks: on each; as many as GPUs where nothing is said.
        nics: in each; a rank uses the one that its number on the host falls to.
        transports: names of those that every rank has.
        memory: bytes of extra memory that an update may take at each rank.
        links: of each host.
        costs: of its processors.
        racks: where uplinks are scarce.
        slower: hosts that differ.
        transport: what differs from what plugins say, by name.
        assumed: whether rates come from data sheets, and not from measurements.
    """

    hosts: Several
    links: HostLinks
    transports: tuple[str, ...]
    gpus: Annotated[int, msgspec.Meta(ge=0)] = 0
    sinks: Annotated[int, msgspec.Meta(ge=0)] = 0
    nics: Several = 1
    memory: Several = 4 << 30
    costs: Costs = Costs()
    racks: Racks | None = None
    slower: tuple[Slower, ...] = ()
    transport: dict[str, TransportRates] = {}
    assumed: bool = False

    def rates_of(self, transport: str) -> TransportRates:
        """What is known of that transport in this cluster."""
        return self.transport.get(transport, AS_ITS_PLUGIN_SAYS)

    @property
    def sinks_per_host(self) -> int:
        return self.sinks or max(self.gpus, 1)

    def rack(self, host: int) -> int:
        """The rack that a host is in; everything is one without racks."""
        return host // self.racks.hosts if self.racks else 0

    def factor(self, host: int) -> float:
        """By how much a host is slower than the others."""
        found = 1.0
        for each in self.slower:
            if host in each.hosts:
                found *= each.times
        return found

    def nic(self, host: int) -> float:
        """Bytes per second of one NIC of a host."""
        rate = next((each.nic for each in self.slower if host in each.hosts and each.nic), self.links.nic)
        return rate / self.factor(host)


def included() -> list[str]:
    """The names of the clusters that come with the library."""
    return sorted(each.name.removesuffix(".toml") for each in INCLUDED.iterdir() if each.name.endswith(".toml"))


def cluster_of(given: str) -> Cluster:
    """The cluster of a file, or the one of that name that comes with the library.

    Raises:
        ConfigError: there is none, or its file says something that means nothing.
    """
    if given in included():
        return read((INCLUDED / f"{given}.toml").read_text(encoding="utf-8"), given, Cluster)
    try:
        text = Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(included())
        raise ConfigError(f"cluster '{given}' cannot be read: {error}; give a TOML file, or one of: {known}") from error
    return read(text, given, Cluster)


def read(text: str, called: str, kind: type[Kind], table: str = "") -> Kind:
    """Read a value from TOML.

    Args:
        text: of the file.
        called: what errors call it.
        kind: of the value.
        table: the name of the table that holds it; empty for the whole file.

    Raises:
        ConfigError: names the key that is wrong, and what it may be.
    """
    try:
        found: Mapping[str, object] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{called} is not TOML: {error}") from error
    if table and table not in found:
        raise ConfigError(f"{called} has no table [{table}]; add it")
    try:
        return msgspec.convert(found[table] if table else found, prepared(kind))
    except msgspec.ValidationError as error:
        keys = ", ".join(field.name for field in msgspec.structs.fields(kind))
        at = f"[{table}] of {called}" if table else called
        raise ConfigError(f"{at}: {error}; it may have the keys {keys}") from error
