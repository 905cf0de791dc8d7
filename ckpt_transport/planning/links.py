"""A plan counts on the rates of links: those that were measured on a host, and assumed ones on any other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from ckpt_transport.planning.values.topology import Topology
from ckpt_transport.rates import HostRates, LinkKind

MeasuredRates = Mapping[str, HostRates]
"""What was measured, by host."""
NOT_MEASURED: MeasuredRates = MappingProxyType({})

ASSUMED: Mapping[LinkKind, float] = {
    LinkKind.MEMORY: 20e9,
    LinkKind.CORE: 6e9,
    LinkKind.TO_DEVICE: 50e9,
    LinkKind.FROM_DEVICE: 50e9,
    LinkKind.DEVICE: 1e12,
    LinkKind.PEER: 100e9,
}
"""Bytes per second of a small server with PCIe 5, for comparing trees; of other kinds nothing is assumed."""


class Links:
    """The rates of the links of all hosts of an update.

    Args:
        measured: what is known.
    """

    def __init__(self, measured: MeasuredRates) -> None:
        self._measured = measured

    def measured(self, host: str) -> bool:
        """Whether the links of that host were measured."""
        return host in self._measured

    def bucket_seconds(self, host: str) -> float:
        """What that host needs for a bucket beside moving it, as it was measured; nothing is assumed."""
        return self._measured[host].bucket_seconds if host in self._measured else 0.0

    def rate(self, host: str, kind: LinkKind, source: str = "", target: str = "") -> tuple[float, bool]:
        """Bytes per second over a link of that host, and whether that was measured; 0 where nothing is known."""
        rate = self._measured[host].rate(kind, source, target) if host in self._measured else 0.0
        return (rate, True) if rate else (ASSUMED.get(kind, 0.0), False)


def sending_rates(topology: Topology, rates: MeasuredRates) -> dict[int, float]:
    """Bytes per second at which each source can send, as far as it is known; others count as the fastest known one.

    The sources of a host share the network that is known of it, where a sink is on another host.
    """
    links = Links(rates)
    sources = [topology.participants[rank] for rank in topology.sources]
    together = Counter(source.host for source in sources)
    hosts = {topology.host(rank) for rank in topology.sinks}
    known: dict[int, float] = {}
    for source in sources:
        network, _ = links.rate(source.host, LinkKind.NETWORK) if hosts - {source.host} else (0.0, False)
        if limits := [limit for limit in (float(source.link), network / together[source.host]) if limit]:
            known[source.rank] = min(limits)
    return dict.fromkeys(topology.sources, max(known.values(), default=1.0)) | known
