"""The planner compares candidates for moving a version and chooses the cheapest."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from ckpt_transport.errors import ConfigError, PlanError
from ckpt_transport.planning.broadcast_trees import BroadcastTree, Rejected, direct_and_relayed
from ckpt_transport.planning.bucketing import cut
from ckpt_transport.planning.chain_broadcast import chain_broadcasts, transports_of
from ckpt_transport.planning.demand import Demand, broadcast, scatter
from ckpt_transport.planning.values.manifest import Manifest
from ckpt_transport.planning.values.settings import AUTO, Settings, bucket_bytes
from ckpt_transport.planning.values.topology import EVERYTHING, Topology
from ckpt_transport.transports.interface import Traits

Trees = Mapping[tuple[int, int], BroadcastTree]
"""The broadcast tree that bytes take from each owner to each receiver set."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate moves all that is demanded, along one broadcast tree for each owner and receiver set.

    Attributes:
        demand: what is brought to whom.
        trees: along which broadcast trees.
        seconds: how long it takes by the cost model.
    """

    demand: Demand
    trees: Trees
    seconds: float


def choose(
    manifest: Manifest, topology: Topology, traits: Mapping[str, Traits], settings: Settings
) -> tuple[str, list[Candidate], list[str]]:
    """Choose the cheapest candidates.

    Returns: the name of their trees; the scatter by these, where it is cheaper, and the broadcast; and the reasons.

    Raises:
        ConfigError: the transport that was asked for does not reach everybody.
        PlanError: none does.
    """
    to_all = _Candidates(manifest, topology, traits, settings, broadcast(manifest, topology))
    candidates: dict[str, list[Candidate]] = {}
    reasons: list[str] = []
    narrower: dict[str, str] = {}
    to_each = None
    if any(topology.participants[rank].share != EVERYTHING for rank in topology.sinks):
        demand = scatter(manifest, topology, settings.range_bytes)
        to_each = _Candidates(manifest, topology, traits, settings, demand) if demand.ranges else None
    for name in to_all.names:
        found = to_all.named(name)
        if isinstance(found, Rejected):
            reasons.append(f"{name}: {found.reason}")
            continue
        candidates[name] = [found]
        narrow = None if to_each is None else to_each.named(name)
        if isinstance(narrow, Candidate):
            narrower[name] = (
                f"scatter, to each sink its share, in {narrow.seconds:.3g} s; broadcast in {found.seconds:.3g} s"
            )
            if narrow.seconds < found.seconds:
                candidates[name].insert(0, narrow)
        reasons.append(f"{name}: about {candidates[name][0].seconds:.3g} s by the cost model")
    chosen = min(candidates, key=lambda name: (candidates[name][0].seconds, name), default="")
    if settings.transport != AUTO:
        if settings.transport not in candidates:
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
    return chosen, candidates[chosen], notes


class _Candidates:
    """Makes the candidates for one demand, by name."""

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
                tree.name: tree
                for sinks in [demand.receiver_sets[receiver_set]]
                for tree in (
                    *direct_and_relayed(owner, sinks, topology, traits),
                    *chain_broadcasts(owner, manifest.owners, sinks, topology, traits, settings.transport),
                )
            }
            for owner, receiver_set in sorted(self._nbytes)
        }

    @property
    def names(self) -> list[str]:
        """The names of trees that reach all sinks."""
        everybody = self._topology.sinks
        return sorted(
            {
                name
                for (_, receiver_set), found in self._found.items()
                for name in found
                if self._demand.receiver_sets[receiver_set] == everybody
            }
        )

    def named(self, name: str) -> Candidate | Rejected:
        """The candidate of that name. A part of the sinks may need a part of it only, as ``shm`` of ``gloo+shm``."""
        trees: dict[tuple[int, int], BroadcastTree] = {}
        load: defaultdict[int, float] = defaultdict(float)
        for key in self._found:
            tree = self._tree(name, key)
            if isinstance(tree, Rejected):
                return tree
            trees[key] = tree
            seconds = self._seconds(tree, key)
            for rank in tree.ranks:
                load[rank] += seconds
        return Candidate(self._demand, trees, max(load.values()))

    def _tree(self, name: str, key: tuple[int, int]) -> BroadcastTree | Rejected:
        found = self._found[key]
        asked = found.get(name, Rejected(name, "there is one place to go, and nobody to pass on to"))
        if isinstance(asked, BroadcastTree) or self._demand.receiver_sets[key[1]] == self._topology.sinks:
            return asked
        allowed = set(transports_of(name))
        others = [
            tree
            for tree in found.values()
            if isinstance(tree, BroadcastTree) and allowed >= set(transports_of(tree.name))
        ]
        return min(others, key=lambda tree: (self._seconds(tree, key), tree.name), default=asked)

    def _seconds(self, tree: BroadcastTree, key: tuple[int, int]) -> float:
        return tree.seconds(self._nbytes[key], self._buckets[key], self._kinds[key[0]], self._traits)

    def _count(self) -> Mapping[tuple[int, int], int]:
        """How many buckets go from each owner to each receiver set. A range counts as one, even if it is gathered."""
        if len(self._demand.receiver_sets) == 1:
            return {key: -(-nbytes // self._bucket_bytes) for key, nbytes in self._nbytes.items()}
        cuts = cut(self._manifest, self._demand.ranges, self._bucket_bytes, self._bucket_bytes)
        return Counter((self._manifest.extents[bucket.extent].owner, bucket.receiver_set) for bucket in cuts)
