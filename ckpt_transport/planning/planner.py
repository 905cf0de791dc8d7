"""From what there is to a plan."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from ckpt_transport.errors import BudgetError, ConfigError, PlanError
from ckpt_transport.planning.bucketing import ALIGNMENT, align_down, align_up, cut
from ckpt_transport.planning.chains import Chain, Link, Rejected, candidates
from ckpt_transport.planning.lines import lines
from ckpt_transport.planning.manifest import Manifest, PlacedTensor
from ckpt_transport.planning.modules import most_kept
from ckpt_transport.planning.plan import (
    IN_PLACE,
    Bucket,
    Hop,
    Plan,
    Ring,
    RingUse,
    Route,
    Stage,
    StageKind,
)
from ckpt_transport.planning.topology import Topology
from ckpt_transport.transport import Reach, Traits

AUTO = "auto"
ENOUGH_BUCKETS = 64
"""A pipeline fills and drains in about a ring's worth of buckets; with this many in all, that is a few per cent."""
SMALL_BUCKET = 1 << 20
"""Buckets are not made smaller than this for the sake of their number: each costs some hundred microseconds."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a person may choose about a plan.

    Attributes:
        transport: a name, a chain as ``gloo+shm`` or ``read-line+shm``, or ``auto``.
        bucket_bytes: largest bucket, and slot, to aim at; a small version is cut finer, so that its stages overlap.
        ring_depth: slots to aim at.
    """

    transport: str = AUTO
    bucket_bytes: int = 64 << 20
    ring_depth: int = 4


def plan(manifest: Manifest, topology: Topology, traits: Mapping[str, Traits], settings: Settings) -> Plan:
    """The plan that brings every tensor of ``manifest`` to every sink of ``topology``. Pure and deterministic.

    Args:
        manifest: what to move; its extents' owners are sources of the topology.
        topology: who takes part.
        traits: of every transport that may be used.
        settings: what the user chose.

    Raises:
        PlanError: there is nothing to move or nobody to move it to, or no chain of transports reaches everybody.
        ConfigError: the transport that was asked for does not reach everybody.
        BudgetError: a participant's budget holds not even one slot.
    """
    if not topology.sinks:
        raise PlanError("an update needs at least one sink")
    if not manifest.tensors:
        raise PlanError(f"version '{manifest.version}' holds no tensors")
    chains, notes = _choose(manifest, topology, traits, settings)
    first = next(iter(chains.values()))
    layout = _Layout(manifest, topology, traits, chains)
    buckets, rings = layout.cut(settings, notes)
    routes, hops, hops_of = _routes(chains, topology, traits)
    stages = _stages(manifest, buckets, hops, hops_of, routes)
    notes.insert(0, f"transport {first.name}")
    return Plan(manifest, topology, routes, hops, tuple(buckets), stages, rings, tuple(notes))


def _choose(
    manifest: Manifest, topology: Topology, traits: Mapping[str, Traits], settings: Settings
) -> tuple[dict[int, Chain], list[str]]:
    """One chain per owner, all of one name, and the reasons."""
    owners = manifest.owners
    found = {
        owner: {
            chain.name: chain
            for chain in (
                *candidates(owner, topology, traits),
                *lines(owner, owners, topology, traits, settings.transport),
            )
        }
        for owner in owners
    }
    names = sorted(found[owners[0]])
    reasons: list[str] = []
    costs: dict[str, float] = {}
    for name in names:
        chains = [found[owner][name] for owner in owners if name in found[owner]]
        rejected = next((chain for chain in chains if isinstance(chain, Rejected)), None)
        if rejected is not None:
            reasons.append(f"{name}: {rejected.reason}")
            continue
        costs[name] = sum(_seconds(manifest, chain, traits, settings) for chain in chains if isinstance(chain, Chain))
        reasons.append(f"{name}: about {costs[name]:.3g} s by the cost model")
    chosen = min(costs, key=lambda name: (costs[name], name), default="")
    if settings.transport != AUTO:
        if settings.transport not in costs:
            raise ConfigError(
                f"transport '{settings.transport}' cannot carry this update; " + ("; ".join(reasons) or "there is none")
            )
        notes = ["chosen by configuration; others were not considered"]
        chosen = settings.transport
    elif not chosen:
        raise PlanError("no transport reaches all sinks: " + ("; ".join(reasons) or "none is available everywhere"))
    else:
        notes = ["chosen as the cheapest by the cost model", *reasons]
    picked = {owner: found[owner][chosen] for owner in owners}
    return {owner: chain for owner, chain in picked.items() if isinstance(chain, Chain)}, notes


def _seconds(manifest: Manifest, chain: Chain, traits: Mapping[str, Traits], settings: Settings) -> float:
    owner = chain.hops[0][0].sender
    extents = [extent for extent in manifest.extents if extent.owner == owner]
    own = {number for number, extent in enumerate(manifest.extents) if extent.owner == owner}
    nbytes = sum(tensor.nbytes for tensor in manifest.tensors if tensor.extent in own)
    return chain.seconds(nbytes, -(-nbytes // _bucket_bytes(manifest, settings)), extents[0].kind, traits)


def _bucket_bytes(manifest: Manifest, settings: Settings) -> int:
    """The size of bucket to aim at."""
    finer = max(manifest.nbytes // ENOUGH_BUCKETS, SMALL_BUCKET)
    return align_up(min(settings.bucket_bytes, finer))


class _Layout:
    """How buckets are cut and which memory they pass through."""

    def __init__(
        self, manifest: Manifest, topology: Topology, traits: Mapping[str, Traits], chains: Mapping[int, Chain]
    ) -> None:
        self._manifest, self._topology = manifest, topology
        self._fills = [chains[extent.owner].fills(extent.kind, traits) for extent in manifest.extents]
        links = [link for chain in chains.values() for hop in chain.hops for link in hop]
        self._receivers = {rank for link in links if not traits[link.transport].maps_memory for rank in link.receivers}
        self._fillers = {extent.owner for extent, fills in zip(manifest.extents, self._fills, strict=True) if fills}
        self._keepers = {participant.rank for participant in topology.participants if participant.keeps_tensors}
        self._kept = 0

    def cut(self, settings: Settings, notes: list[str]) -> tuple[list[Bucket], tuple[Ring, ...]]:
        """Buckets with their slots, and the rings the slots are in.

        What is read in place takes no slot, so a bucket may be as long as a ring, which saves control.
        """
        if not self._receivers and not self._fillers:
            return cut(self._manifest, align_up(settings.bucket_bytes) * settings.ring_depth, None), ()
        if self._keepers:
            self._kept = most_kept(self._manifest, self._fit(settings, [])[0])
            self._check_room_for_kept()
            notes.append(f"sinks keep up to {self._kept:,} bytes of layers that are not complete")
        return self._fit(settings, notes)

    def _check_room_for_kept(self) -> None:
        """Also of sinks that need no slots."""
        for rank in sorted(self._keepers):
            budget = self._topology.participants[rank].budget
            if budget < self._kept:
                raise BudgetError(
                    f"a sink's loader keeps up to {self._kept:,} bytes until it has all of a layer, and its memory "
                    f"budget is {budget:,} bytes; raise memory_budget on the sink, or use a transport that reads the "
                    "source's memory in place"
                )

    def _fit(self, settings: Settings, notes: list[str]) -> tuple[list[Bucket], tuple[Ring, ...]]:
        """Buckets and rings that leave room for what loaders keep."""
        wanted = _bucket_bytes(self._manifest, settings)
        smallest, largest = self._slot_limits(wanted)
        tightest = self._tightest(smallest)
        limit = min(largest, align_down(tightest))
        buckets = cut(self._manifest, min(wanted, limit), limit)
        slot_bytes = max(align_up(max(bucket.nbytes for bucket in buckets)), ALIGNMENT)
        depth = min(settings.ring_depth, tightest // slot_bytes)
        if limit < wanted:
            notes.append(f"degraded: slots of {limit:,} instead of {wanted:,} bytes, for want of memory")
        if depth < settings.ring_depth:
            how = f"a ring of {depth}" if depth > 1 else "one slot, so the stages run one after the other,"
            notes.append(f"degraded: {how} instead of {settings.ring_depth} slots, for want of memory")
        filled: defaultdict[int, int] = defaultdict(int)
        placed = []
        for number, bucket in enumerate(buckets):
            owner = self._manifest.extents[bucket.extent].owner
            fill_slot = IN_PLACE
            if self._fills[bucket.extent]:
                fill_slot = filled[owner] % depth
                filled[owner] += 1
            slot = number % depth if self._receivers else IN_PLACE
            placed.append(Bucket(bucket.extent, bucket.offset, bucket.nbytes, fill_slot, slot, bucket.pieces))
        return placed, (
            *(Ring(rank, RingUse.FILL, depth, slot_bytes) for rank in sorted(self._fillers)),
            *(Ring(rank, RingUse.RECEIVE, depth, slot_bytes) for rank in sorted(self._receivers)),
        )

    def _slot_limits(self, wanted: int) -> tuple[int, int]:
        """The smallest slot that works, and the size to aim at, in bytes."""
        if not any(participant.whole_tensors for participant in self._topology.participants):
            return ALIGNMENT, wanted
        biggest = max(ALIGNMENT, *map(_slot_bytes, self._manifest.tensors))
        return biggest, max(wanted, biggest)

    def _tightest(self, smallest: int) -> int:
        """The bytes that every ring has room for, next to what loaders keep."""
        room = {
            rank: self._topology.participants[rank].budget - self._kept * (rank in self._keepers)
            for rank in self._receivers | self._fillers
        }
        tightest = min(
            room[rank] // ((rank in self._receivers) + (rank in self._fillers))
            for rank in self._receivers | self._fillers
        )
        if tightest < smallest and self._kept:
            raise BudgetError(
                f"a sink's loader keeps up to {self._kept:,} bytes until it has all of a layer, and its memory budget "
                f"leaves no room for a slot of {smallest:,} bytes beside them; raise memory_budget, or use a transport "
                "that reads the source's memory in place"
            )
        if tightest < smallest:
            tensor = max(self._manifest.tensors, key=_slot_bytes)
            why = (
                f"which tensor {tensor.spec} needs because a sink's loader takes tensors whole"
                if smallest > ALIGNMENT
                else "which is the smallest there is"
            )
            raise BudgetError(
                f"a memory budget of {tightest:,} bytes per ring holds no slot of {smallest:,} bytes, {why}; "
                "raise memory_budget"
            )
        return tightest


def _slot_bytes(tensor: PlacedTensor) -> int:
    """The smallest slot that holds a tensor whole."""
    return align_up(tensor.offset % ALIGNMENT + tensor.nbytes)


def _routes(
    chains: Mapping[int, Chain], topology: Topology, traits: Mapping[str, Traits]
) -> tuple[tuple[Route, ...], tuple[Hop, ...], dict[int, tuple[int, ...]]]:
    """Routes, hops, and for each owner the numbers of its hops."""
    routes: list[Route] = []
    hops: list[Hop] = []
    hops_of: dict[int, tuple[int, ...]] = {}

    def leg_of(link: Link) -> int:
        members = [topology.participants[rank] for rank in link.ranks]
        devices = [member.device for member in members]
        if traits[link.transport].reach is Reach.DEVICE:
            devices[0] = members[-1].device
        routes.append(Route(link.transport, link.ranks, traits[link.transport].maps_memory, tuple(devices)))
        return len(routes) - 1

    for owner, chain in sorted(chains.items()):
        first = len(hops)
        hops.extend(Hop(tuple(link.leg(leg_of(link)) for link in links)) for links in chain.hops)
        hops_of[owner] = tuple(range(first, len(hops)))
    return tuple(routes), tuple(hops), hops_of


def _stages(
    manifest: Manifest,
    buckets: Sequence[Bucket],
    hops: Sequence[Hop],
    hops_of: Mapping[int, Sequence[int]],
    routes: Sequence[Route],
) -> tuple[Stage, ...]:
    """Every bucket's stages, each after what it needs and after the last readers of the slot it overwrites."""
    stages: list[Stage] = []
    senders = [rank_mask(leg.sender for leg in hop.legs) for hop in hops]
    writers = [receiving_mask(hop, routes) for hop in hops]
    fill_readers: dict[tuple[int, int], int] = {}
    occupants: defaultdict[int, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)

    def add(kind: StageKind, bucket: int, hop: int, after: Iterable[int]) -> int:
        stages.append(Stage(kind, bucket, hop, tuple(sorted(set(after)))))
        return len(stages) - 1

    for number, bucket in enumerate(buckets):
        owner = manifest.extents[bucket.extent].owner
        before: list[int] = []
        if bucket.fill_slot != IN_PLACE:
            previous = fill_readers.get((owner, bucket.fill_slot))
            before = [add(StageKind.FILL, number, -1, () if previous is None else (previous,))]
        chain = hops_of[owner]
        transfers: list[int] = []
        for hop in chain:
            freed = [stage for ranks, readers in occupants[bucket.slot] if ranks & writers[hop] for stage in readers]
            transfers.append(add(StageKind.TRANSFER, number, hop, [*before, *freed]))
            before = [transfers[-1]]
        apply = add(StageKind.APPLY, number, -1, transfers)
        if bucket.fill_slot != IN_PLACE:
            fill_readers[owner, bucket.fill_slot] = transfers[0]
        for hop in chain:
            onward = (stage for then, stage in zip(chain, transfers, strict=True) if senders[then] & writers[hop])
            occupy(occupants[bucket.slot], writers[hop], (apply, *onward))
    return tuple(stages)


def rank_mask(ranks: Iterable[int]) -> int:
    """A set of ranks as the bits of an integer, so that sets of hundreds of ranks compare in one step."""
    return sum(1 << rank for rank in set(ranks))


def receiving_mask(hop: Hop, routes: Sequence[Route]) -> int:
    """The ranks whose slots a hop writes to."""
    return rank_mask(rank for leg in hop.legs if not routes[leg.route].maps_memory for rank in leg.receivers)


def occupy(occupants: list[tuple[int, tuple[int, ...]]], ranks: int, readers: tuple[int, ...]) -> None:
    """Note that the same slot of all ``ranks`` now holds a bucket that the stages ``readers`` read."""
    occupants[:] = [(others & ~ranks, stages) for others, stages in occupants if others & ~ranks]
    if ranks:
        occupants.append((ranks, readers))
