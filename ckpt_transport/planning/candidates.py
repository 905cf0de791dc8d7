"""The planner compares candidates for moving a version and chooses the cheapest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ckpt_transport.errors import ConfigError, PlanError
from ckpt_transport.planning.broadcast_trees import BroadcastTree, Rejected, direct_and_relayed
from ckpt_transport.planning.bucket_sizes import expected
from ckpt_transport.planning.bucketing import cut, smallest_slot
from ckpt_transport.planning.chain_broadcast import chain_broadcasts, transports_of
from ckpt_transport.planning.demand import Demand, broadcast, scatter
from ckpt_transport.planning.links import Links, MeasuredRates
from ckpt_transport.planning.loads import LoadCounter
from ckpt_transport.planning.prediction import Moved, predict, received
from ckpt_transport.planning.unknown_trees import why_no_tree
from ckpt_transport.planning.values.manifest import Extent, Manifest
from ckpt_transport.planning.values.plan import Bucket
from ckpt_transport.planning.values.prediction import Prediction
from ckpt_transport.planning.values.settings import AUTO, SMALL_BUCKET, Settings, bucket_bytes
from ckpt_transport.planning.values.topology import EVERYTHING, Topology
from ckpt_transport.sizes import count, duration
from ckpt_transport.transports.interface import Traits

Trees = Mapping[tuple[int, int], BroadcastTree]
"""The broadcast tree that bytes take from each owner to each receiver set."""

AS_FAST = 0.95
"""No cost model tells candidates apart that need more than so much of each other's time."""


@dataclass(frozen=True)
class Candidate:
    """A candidate moves all that is demanded, along one broadcast tree for each owner and receiver set.

    Attributes:
        demand: what is brought to whom.
        trees: along which broadcast trees.
        moved: what goes along each, in buckets whose number is estimated.
    """

    demand: Demand
    trees: Trees
    moved: Mapping[tuple[int, int], Moved]

    @cached_property
    def prediction(self) -> Prediction:
        """How long it takes by the cost model."""
        return predict(self.moved.values())

    def saves(self, other: Candidate) -> bool:
        """Whether it is faster than another, or as fast while ranks receive less."""
        mine, theirs = self.prediction.seconds, other.prediction.seconds
        if mine > theirs / AS_FAST or mine < theirs * AS_FAST:
            return mine < theirs
        return received(self.moved.values()) < received(other.moved.values())

    def prediction_for(self, manifest: Manifest, buckets: Iterable[Bucket]) -> Prediction:
        """The same for a version as it has been cut."""
        counts = Counter((manifest.extents[bucket.extent].owner, bucket.receiver_set) for bucket in buckets)
        return predict(moved._replace(buckets=counts[key]) for key, moved in self.moved.items())


@dataclass(frozen=True, slots=True)
class Choice:
    """Says which candidates are the cheapest, and why.

    Attributes:
        name: of their trees.
        candidates: the scatter by these, where it is cheaper, and the broadcast.
        notes: what a person wants to know: this one, the next one, and what the first source has and cannot use.
        others: the same of every other candidate.
    """

    name: str
    candidates: Sequence[Candidate]
    notes: Sequence[str]
    others: Sequence[str]


def choose(
    manifest: Manifest,
    topology: Topology,
    traits: Mapping[str, Traits],
    settings: Settings,
    rates: MeasuredRates,
) -> Choice:
    """Choose the cheapest candidates.

    Raises:
        ConfigError: the transport that was asked for does not reach everybody.
        PlanError: none does.
    """
    counter = LoadCounter(topology, traits, Links(rates), settings.digests)
    to_all = _Candidates(manifest, topology, traits, settings, broadcast(manifest, topology), counter)
    candidates: dict[str, list[Candidate]] = {}
    reasons: dict[str, str] = {}
    narrower: dict[str, str] = {}
    to_each = None
    if any(topology.participants[rank].share != EVERYTHING for rank in topology.sinks):
        demand = scatter(manifest, topology, settings.range_bytes)
        to_each = _Candidates(manifest, topology, traits, settings, demand, counter) if demand.ranges else None
    for name in to_all.names:
        found = to_all.named(name)
        if isinstance(found, Rejected):
            reasons[name] = f"{name}: {found.reason}"
            continue
        candidates[name] = [found]
        narrow = None if to_each is None else to_each.named(name)
        if isinstance(narrow, Candidate):
            shared, whole = duration(narrow.prediction.seconds), duration(found.prediction.seconds)
            narrower[name] = f"scatter, to each sink its share, in {shared}; broadcast in {whole}"
            if narrow.saves(found):
                candidates[name].insert(0, narrow)
        reasons[name] = f"{name}: about {_in_words(candidates[name][0].prediction)}"
    by_time = sorted(candidates, key=lambda name: (candidates[name][0].prediction.seconds, name))
    chosen = by_time[0] if by_time else ""
    others: list[str] = []
    if settings.transport != AUTO:
        if settings.transport not in candidates:
            no_tree = f"{settings.transport}: {why_no_tree(settings.transport, len(topology.sinks), traits)}"
            own = reasons.pop(settings.transport, no_tree)
            why = "; ".join([own, *reasons.values()])
            raise ConfigError(f"transport '{settings.transport}' cannot carry this update; {why}")
        notes = ["chosen by configuration; others were not considered"]
        chosen = settings.transport
    elif not chosen:
        raise PlanError(
            "no transport reaches all sinks: " + ("; ".join(reasons.values()) or "none is available everywhere")
        )
    else:
        rejected = [name for name in reasons if name not in candidates]
        missed = [name for name in rejected if name in traits and topology.sources[0] in topology.can_use(name)]
        told = [*by_time[:2], *missed]
        notes = ["chosen as the cheapest by the cost model", *(reasons[name] for name in told)]
        others = [reasons[name] for name in (*by_time, *rejected) if name not in told]
    if chosen in narrower:
        notes.append(narrower[chosen])
    hosts = {participant.host for participant in topology.participants} - rates.keys()
    if hosts:
        notes.append(
            f"links of {count(len(hosts), 'host')} were not measured, so assumed rates count: "
            "'ckpt-transport transports --measure' measures them"
        )
    return Choice(chosen, candidates[chosen], notes, others)


def _in_words(prediction: Prediction) -> str:
    return f"{duration(prediction.seconds)}, {duration(prediction.busy)} of it for {prediction.link}"


class _Candidates:
    """Makes the candidates for one demand, by name."""

    def __init__(
        self,
        manifest: Manifest,
        topology: Topology,
        traits: Mapping[str, Traits],
        settings: Settings,
        demand: Demand,
        counter: LoadCounter,
    ) -> None:
        self._manifest, self._topology, self._demand, self._counter = manifest, topology, demand, counter
        self._traits, self._settings = traits, settings
        self._bucket_bytes = bucket_bytes(manifest, settings)
        extents = manifest.extents
        self._nbytes: Counter[tuple[int, int]] = Counter()
        for demanded in demand.ranges:
            owner = extents[manifest.tensors[demanded.tensor].extent].owner
            self._nbytes[owner, demanded.receiver_set] += demanded.nbytes
        self._buckets = self._count()
        self._counted: dict[tuple[str, tuple[int, int]], Moved] = {}
        self._alone: dict[tuple[str, tuple[int, int]], float] = {}
        self._extents = {extent.owner: extent for extent in reversed(extents)}
        self._found = {
            (owner, receiver_set): {
                tree.name: tree
                for sinks in [demand.receiver_sets[receiver_set]]
                for tree in (
                    *direct_and_relayed(owner, sinks, topology, traits, self._extents[owner].device),
                    *chain_broadcasts(owner, manifest.owners, sinks, topology, traits, settings.transport),
                )
                for tree in [self._with_room(tree, self._extents[owner], traits)]
            }
            for owner, receiver_set in sorted(self._nbytes)
        }

    def _with_room(
        self, tree: BroadcastTree | Rejected, extent: Extent, traits: Mapping[str, Traits]
    ) -> BroadcastTree | Rejected:
        """The tree, unless a rank that would send from shared memory has too little of it."""
        if isinstance(tree, Rejected):
            return tree
        for rank in sorted(tree.senders_from_shared_slots(extent, traits)):
            shared = self._topology.participants[rank].shared_budget
            if shared < max(smallest_slot(self._manifest, self._topology), SMALL_BUCKET):
                return Rejected(tree.name, f"rank {rank} has {shared:,} bytes of shared memory, which hold no slot")
        return tree

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
        for key in self._found:
            tree = self._tree(name, key)
            if isinstance(tree, Rejected):
                return tree
            trees[key] = tree
        return Candidate(self._demand, trees, {key: self._moved(tree, key) for key, tree in trees.items()})

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
        if len(others) < 2:
            return others[0] if others else asked
        return min(others, key=lambda tree: (self._seconds(tree, key), tree.name))

    def _moved(self, tree: BroadcastTree, key: tuple[int, int]) -> Moved:
        """What goes along a tree. Candidates of several names share trees, which are counted once."""
        if (tree.name, key) not in self._counted:
            owner, receiver_set = key
            takes = {rank: self._takes[rank] for rank in self._demand.receiver_sets[receiver_set]}
            stages = self._counter.stages(tree, self._extents[owner], takes)
            self._counted[tree.name, key] = Moved(stages, self._nbytes[key], self._buckets_along(tree, key))
        return self._counted[tree.name, key]

    def _buckets_along(self, tree: BroadcastTree, key: tuple[int, int]) -> int:
        """How many buckets go along a tree: where they are longer than others, so many fewer."""
        nbytes, extent = self._nbytes[key], self._extents[key[0]]
        size = expected(extent, tree, nbytes, self._topology, self._traits, self._settings, self._bucket_bytes)
        otherwise, along = (-(-nbytes // each) for each in (self._bucket_bytes, size))
        return self._buckets[key] - otherwise + along

    def _seconds(self, tree: BroadcastTree, key: tuple[int, int]) -> float:
        """How long it takes when only what goes along this tree moves."""
        if (tree.name, key) not in self._alone:
            self._alone[tree.name, key] = predict([self._moved(tree, key)]).seconds
        return self._alone[tree.name, key]

    @cached_property
    def _takes(self) -> Mapping[int, float]:
        """How much of what it is brought each sink takes in."""
        needs = [share.nbytes for share in self._topology.shares]
        brought: Counter[int] = Counter()
        for (_, receiver_set), nbytes in self._nbytes.items():
            brought.update(dict.fromkeys(self._demand.receiver_sets[receiver_set], nbytes))
        shares = {rank: self._topology.participants[rank].share for rank in brought}
        return {
            rank: 1.0 if share == EVERYTHING or not brought[rank] else min(needs[share] / brought[rank], 1.0)
            for rank, share in shares.items()
        }

    def _count(self) -> Mapping[tuple[int, int], int]:
        """How many buckets go from each owner to each receiver set. A range counts as one, even if it is gathered."""
        if len(self._demand.receiver_sets) == 1:
            return {key: -(-nbytes // self._bucket_bytes) for key, nbytes in self._nbytes.items()}
        cuts = cut(self._manifest, self._demand.ranges, self._bucket_bytes, self._bucket_bytes)
        return Counter((self._manifest.extents[bucket.extent].owner, bucket.receiver_set) for bucket in cuts)
