"""The allocator says how long buckets are, which slots they pass through, and how many slots a rank needs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import msgspec

from ckpt_transport.errors import BudgetError
from ckpt_transport.planning.bucket_sizes import (
    are_brought,
    in_place,
    longer,
    room_everywhere,
    through_slots,
    times_longer,
)
from ckpt_transport.planning.bucketing import cut, gather, round_robin, slot_bytes, smallest_slot
from ckpt_transport.planning.candidates import Candidate
from ckpt_transport.planning.loader_memory import most_kept
from ckpt_transport.planning.values.alignment import ALIGNMENT, align_down, align_up
from ckpt_transport.planning.values.manifest import Manifest
from ckpt_transport.planning.values.plan import IN_PLACE, Bucket, Ring, RingUse
from ckpt_transport.planning.values.settings import Settings, bucket_bytes
from ckpt_transport.planning.values.topology import NO_LIMIT, Topology
from ckpt_transport.transports.interface import Traits

DEGRADED = "degraded"
"""How a note begins that says what memory made the planner give up."""


HOST_FILL_DEPTH = 2
"""So many slots of host memory an owner fills in turns: it fills one while the other is sent. More would cost a trainer
memory, and gain nothing: fills and applies use the same memory, or a network is slower than either."""


class SlotAllocator:
    """Cuts buckets so that they fit the memory of every rank, and gives each the slots that it passes through."""

    def __init__(
        self, manifest: Manifest, topology: Topology, traits: Mapping[str, Traits], candidate: Candidate
    ) -> None:
        self._manifest, self._topology, self._demand = manifest, topology, candidate.demand
        self._trees = candidate.trees
        self._fills = {
            (number, receiver_set): tree.fills(extent, traits)
            for number, extent in enumerate(manifest.extents)
            for (owner, receiver_set), tree in candidate.trees.items()
            if owner == extent.owner
        }
        links = [link for tree in candidate.trees.values() for hop in tree.hops for link in hop]
        self._receivers = {rank for link in links if not traits[link.transport].maps_memory for rank in link.receivers}
        self._shared = {
            rank: topology.participants[rank].shared_budget
            for extent in manifest.extents
            for (owner, _), tree in candidate.trees.items()
            if owner == extent.owner
            for rank in tree.senders_from_shared_slots(extent, traits)
        }
        self._fillers = {manifest.extents[number].owner for (number, _), fills in self._fills.items() if fills}
        self._keepers = {participant.rank for participant in topology.participants if participant.keeps_tensors}
        self._traits = traits
        self._kept = 0

    def allocate(self, settings: Settings, notes: list[str]) -> tuple[list[Bucket], tuple[Ring, ...]]:
        """Cut buckets, and return them with their slots, and the rings that the slots are in."""
        if not self._receivers and not self._fillers:
            return round_robin(self._manifest, self._in_place(settings)), ()
        if self._keepers:
            self._kept = self._most_kept(self._fit(settings, [])[0])
            self._check_room_for_kept()
            notes.append(f"sinks keep up to {self._kept:,} bytes of layers that are not complete")
        return self._fit(settings, notes)

    def _in_place(self, settings: Settings) -> Sequence[Bucket]:
        """Buckets without slots. A tensor is cut where a sink brings them to its GPU, unless it needs whole tensors, or
        would have to keep the parts."""
        extents, whole = self._manifest.extents, self._keepers or self._topology.whole_tensors
        size = in_place(extents, self._topology, settings, self._least_received)
        longest = size if are_brought(extents, self._topology) and not whole else None
        return self._gathered(cut(self._manifest, self._demand.ranges, size, longest), size)

    def _gathered(self, buckets: Iterable[Bucket], bucket_bytes: int) -> Sequence[Bucket]:
        """Fewer buckets, where the ranges of one receiver set lie between those of another."""
        return gather(list(buckets), bucket_bytes) if len(self._demand.receiver_sets) > 1 else list(buckets)

    def _most_kept(self, buckets: Sequence[Bucket]) -> int:
        """The bytes that a sink keeps, of the one that keeps most."""
        alike = {(self._memberships[rank], self._topology.participants[rank].share): rank for rank in self._keepers}
        return max(
            most_kept(
                self._manifest,
                [bucket for bucket in buckets if bucket.receiver_set in receiver_sets],
                self._topology.share_of(rank),
            )
            for (receiver_sets, _), rank in alike.items()
        )

    @cached_property
    def _memberships(self) -> dict[int, frozenset[int]]:
        """The receiver sets that each sink belongs to."""
        found: defaultdict[int, set[int]] = defaultdict(set)
        for number, receiver_set in enumerate(self._demand.receiver_sets):
            for rank in receiver_set:
                found[rank].add(number)
        return {rank: frozenset(found[rank]) for rank in self._topology.sinks}

    def _check_room_for_kept(self) -> None:
        """Check the budgets of all sinks that keep tensors, also of those that need no slots."""
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
        wanted = through_slots(settings, bucket_bytes(self._manifest, settings), receives=bool(self._receivers))
        wanted = self._shared_limit(wanted, settings.ring_depth, notes)
        smallest = smallest_slot(self._manifest, self._topology)
        tightest = self._tightest(smallest)
        times = times_longer(self._manifest.extents, self._trees.values(), self._topology, self._traits, settings)
        if times > 1:
            room = min(tightest, room_everywhere(self._trees, self._topology))
            wanted = max(wanted, longer(settings, times, self._least_received, room))
        limit = min(max(wanted, smallest), align_down(tightest))
        size = min(wanted, limit)
        cuts = cut(self._manifest, self._demand.ranges, size, limit)
        buckets = round_robin(self._manifest, self._gathered(cuts, size))
        slot_size = max(align_up(max(bucket.nbytes for bucket in buckets)), ALIGNMENT)
        depth = min(settings.ring_depth, tightest // slot_size)
        if limit < wanted:
            notes.append(f"{DEGRADED}: slots of {limit:,} instead of {wanted:,} bytes, for want of memory")
        if depth < settings.ring_depth:
            how = f"a ring of {depth}" if depth > 1 else "one slot, so the stages run one after the other,"
            notes.append(f"{DEGRADED}: {how} instead of {settings.ring_depth} slots, for want of memory")
        filled: defaultdict[int, int] = defaultdict(int)
        placed = []
        slots = _SlotTurns(depth, self._memberships)
        for bucket in buckets:
            owner = self._manifest.extents[bucket.extent].owner
            fill_slot = IN_PLACE
            if self._fills[bucket.extent, bucket.receiver_set]:
                fill_slot = filled[owner] % self._fill_depth(owner, depth)
                filled[owner] += 1
            slot = slots.take(bucket.receiver_set) if self._receivers else IN_PLACE
            placed.append(msgspec.structs.replace(bucket, fill_slot=fill_slot, slot=slot))
        return placed, (
            *(Ring(rank, RingUse.FILL, self._fill_depth(rank, depth), slot_size) for rank in sorted(self._fillers)),
            *(Ring(rank, RingUse.RECEIVE, depth, slot_size) for rank in sorted(self._receivers)),
        )

    def _fill_depth(self, owner: int, depth: int) -> int:
        """How many slots an owner fills in turns. On a GPU fills are enqueued, so that a deeper ring keeps it busy."""
        return depth if self._topology.participants[owner].device else min(depth, HOST_FILL_DEPTH)

    @cached_property
    def _least_received(self) -> int:
        """The bytes that are brought to a sink, of the one that needs fewest."""
        nbytes: Counter[int] = Counter()
        for demanded in self._demand.ranges:
            nbytes[demanded.receiver_set] += demanded.nbytes
        return min(sum(nbytes[each] for each in members) for members in set(self._memberships.values()))

    def _shared_limit(self, wanted: int, depth: int, notes: list[str]) -> int:
        """The size of slots to aim at: smaller ones where ``/dev/shm`` holds no ring of those that are wanted."""
        rank = min(self._shared, key=self._shared.__getitem__, default=None)
        if rank is None or self._shared[rank] >= wanted * depth:
            return wanted
        limit = max(align_down(self._shared[rank] // depth), ALIGNMENT)
        notes.append(
            f"{DEGRADED}: slots of {limit:,} instead of {wanted:,} bytes, for rank {rank} has {self._shared[rank]:,} "
            "bytes of shared memory; start its container with --ipc=host or a larger --shm-size"
        )
        return limit

    def _tightest(self, smallest: int) -> int:
        """The bytes that every ring has room for, next to what loaders keep."""
        room = {
            rank: min(
                self._topology.participants[rank].budget - self._kept * (rank in self._keepers),
                self._shared.get(rank, NO_LIMIT),
            )
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
            tensor = max(self._manifest.tensors, key=slot_bytes)
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


class _SlotTurns:
    """Gives each bucket the slot that its receiver set has not used for longest. All its ranks receive it there."""

    def __init__(self, depth: int, memberships: Mapping[int, frozenset[int]]) -> None:
        alike = set(memberships.values())
        self._used = {receiver_sets: [-1] * depth for receiver_sets in alike}
        self._members: defaultdict[int, list[frozenset[int]]] = defaultdict(list)
        for receiver_sets in alike:
            for receiver_set in receiver_sets:
                self._members[receiver_set].append(receiver_sets)
        self._taken = 0

    def take(self, receiver_set: int) -> int:
        rings = [self._used[members] for members in self._members[receiver_set]]
        latest = [max(uses) for uses in zip(*rings, strict=True)]
        slot = latest.index(min(latest))
        for ring in rings:
            ring[slot] = self._taken
        self._taken += 1
        return slot
