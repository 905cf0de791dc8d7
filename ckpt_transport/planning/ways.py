"""The ways in which a version can be moved, and the choice among them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from ckpt_transport.errors import ConfigError, PlanError
from ckpt_transport.planning.bucketing import cut
from ckpt_transport.planning.chains import Chain, Rejected, candidates
from ckpt_transport.planning.demand import Demand, broadcast, scatter
from ckpt_transport.planning.lines import lines, transports_of
from ckpt_transport.planning.values.manifest import Manifest
from ckpt_transport.planning.values.settings import AUTO, Settings, bucket_bytes
from ckpt_transport.planning.values.topology import EVERYTHING, Topology
from ckpt_transport.transports.interface import Traits

Chains = Mapping[tuple[int, int], Chain]
"""For each owner and receiver set between which bytes move, the way that these take."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way to move a version.

    Attributes:
        demand: what is brought to whom.
        chains: along which ways.
        seconds: that the cost model expects it to take.
    """

    demand: Demand
    chains: Chains
    seconds: float


def choose(
    manifest: Manifest, topology: Topology, traits: Mapping[str, Traits], settings: Settings
) -> tuple[str, list[Way], list[str]]:
    """The name of the cheapest way that may be used, that way and everything to all by that name, and the reasons."""
    to_all = _Ways(manifest, topology, traits, settings, broadcast(manifest, topology))
    ways: dict[str, list[Way]] = {}
    reasons: list[str] = []
    narrower: dict[str, str] = {}
    to_each = None
    if any(topology.participants[rank].share != EVERYTHING for rank in topology.sinks):
        demand = scatter(manifest, topology, settings.range_bytes)
        to_each = _Ways(manifest, topology, traits, settings, demand) if demand.ranges else None
    for name in to_all.names:
        found = to_all.named(name)
        if isinstance(found, Rejected):
            reasons.append(f"{name}: {found.reason}")
            continue
        ways[name] = [found]
        narrow = None if to_each is None else to_each.named(name)
        if isinstance(narrow, Way):
            narrower[name] = (
                f"scatter, to each sink its share, in {narrow.seconds:.3g} s; broadcast in {found.seconds:.3g} s"
            )
            if narrow.seconds < found.seconds:
                ways[name].insert(0, narrow)
        reasons.append(f"{name}: about {ways[name][0].seconds:.3g} s by the cost model")
    chosen = min(ways, key=lambda name: (ways[name][0].seconds, name), default="")
    if settings.transport != AUTO:
        if settings.transport not in ways:
            own = f"{settings.transport}: "
            reasons.sort(key=lambda reason: not reason.startswith(own))
            raise ConfigError(
                f"transport '{settings.transport}' cannot carry this update; " + ("; ".join(reasons) or "there is none")
            )
        notes = ["chosen by configuration; others were not considered"]
        chosen = settings.transport
    elif not chosen:
        raise PlanError("no transport reaches all sinks: " + ("; ".join(reasons) or "none is available everywhere"))
    else:
        notes = ["chosen as the cheapest by the cost model", *reasons]
    if chosen in narrower:
        notes.append(narrower[chosen])
    return chosen, ways[chosen], notes


class _Ways:
    """All ways to satisfy one demand, by name."""

    def __init__(
        self,
        manifest: Manifest,
        topology: Topology,
        traits: Mapping[str, Traits],
        settings: Settings,
        demand: Demand,
    ) -> None:
        self._manifest, self._topology, self._traits, self._demand = manifest, topology, traits, demand
        self._bucket_bytes = bucket_bytes(manifest, settings)
        extents = manifest.extents
        self._nbytes: Counter[tuple[int, int]] = Counter()
        for demanded in demand.ranges:
            owner = extents[manifest.tensors[demanded.tensor].extent].owner
            self._nbytes[owner, demanded.receiver_set] += demanded.nbytes
        self._buckets = self._count()
        self._kinds = {extent.owner: extent.kind for extent in reversed(extents)}
        self._found = {
            (owner, receiver_set): {
                chain.name: chain
                for sinks in [demand.receiver_sets[receiver_set]]
                for chain in (
                    *candidates(owner, sinks, topology, traits),
                    *lines(owner, manifest.owners, sinks, topology, traits, settings.transport),
                )
            }
            for owner, receiver_set in sorted(self._nbytes)
        }

    @property
    def names(self) -> list[str]:
        """What ways to reach all sinks are called."""
        everybody = self._topology.sinks
        return sorted(
            {
                name
                for (_, receiver_set), found in self._found.items()
                for name in found
                if self._demand.receiver_sets[receiver_set] == everybody
            }
        )

    def named(self, name: str) -> Way | Rejected:
        """The way of that name; to a part of the sinks it may take less, as ``shm`` of ``gloo+shm``."""
        chains: dict[tuple[int, int], Chain] = {}
        load: defaultdict[int, float] = defaultdict(float)
        for key in self._found:
            chain = self._chain(name, key)
            if isinstance(chain, Rejected):
                return chain
            chains[key] = chain
            seconds = self._seconds(chain, key)
            for rank in chain.ranks:
                load[rank] += seconds
        return Way(self._demand, chains, max(load.values()))

    def _chain(self, name: str, key: tuple[int, int]) -> Chain | Rejected:
        found = self._found[key]
        asked = found.get(name, Rejected(name, "there is one place to go, and nobody to pass on to"))
        if isinstance(asked, Chain) or self._demand.receiver_sets[key[1]] == self._topology.sinks:
            return asked
        allowed = set(transports_of(name))
        others = [
            chain for chain in found.values() if isinstance(chain, Chain) and allowed >= set(transports_of(chain.name))
        ]
        return min(others, key=lambda chain: (self._seconds(chain, key), chain.name), default=asked)

    def _seconds(self, chain: Chain, key: tuple[int, int]) -> float:
        return chain.seconds(self._nbytes[key], self._buckets[key], self._kinds[key[0]], self._traits)

    def _count(self) -> Mapping[tuple[int, int], int]:
        """How many buckets go from each owner to each receiver set. A range counts as one, even if it is gathered."""
        if len(self._demand.receiver_sets) == 1:
            return {key: -(-nbytes // self._bucket_bytes) for key, nbytes in self._nbytes.items()}
        cuts = cut(self._manifest, self._demand.ranges, self._bucket_bytes, self._bucket_bytes)
        return Counter((self._manifest.extents[bucket.extent].owner, bucket.receiver_set) for bucket in cuts)
