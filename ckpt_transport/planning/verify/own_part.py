"""The proof of one rank's part of a plan, made by that rank before it agrees.

Rank 0 proves the whole of a plan (:mod:`ckpt_transport.planning.verify.whole`) before it proposes it. A member does not
take its word for it: another version of the library, or a mistake in it, would leave a mix of two versions there. What
concerns one rank is a small part of the proof, and shares no code with the planner either:

* every byte that this rank needs of every tensor lies in exactly one piece of the buckets that it applies, where the
  bucket says;
* each of its stages waits for earlier ones only, and uses a bucket only after the stage that brought it here;
* none of its slots is overwritten while a stage may still read it;
* it does not wait for a send of its own that ends only when a later stage has applied the bucket elsewhere;
* its rings, and what its loader keeps, fit its budget, and each bucket fits its slot.
"""

from __future__ import annotations

from collections import defaultdict, deque

from ckpt_transport.errors import BudgetError, CoverageError, PlanError
from ckpt_transport.planning.values.plan import IN_PLACE, Bucket, Leg, Plan, RingUse, StageKind
from ckpt_transport.planning.verify.coverage import check_needs, check_ownership, check_pieces
from ckpt_transport.planning.verify.kept import most_kept
from ckpt_transport.planning.verify.structure import check_rings, check_routes


def verify_part(plan: Plan, rank: int, budget: int) -> None:
    """Prove what ``plan`` does on ``rank``, which has ``budget`` bytes of memory to spare.

    Raises:
        CoverageError: a byte is missed there, moved twice, or read before it is there; names the tensor or the stage.
        BudgetError: the rank would need more memory than it has, or a bucket is larger than its slot.
        PlanError: the plan refers to something it does not contain.
    """
    if not 0 <= rank < len(plan.topology.participants):
        raise PlanError(f"the plan has no rank {rank}")
    check_routes(plan)
    check_rings(plan)
    check_ownership(plan)
    mine = frozenset(number for number, receiver_set in enumerate(plan.receiver_sets) if rank in receiver_set)
    owned = {number for number, extent in enumerate(plan.manifest.extents) if extent.owner == rank}
    check_pieces(plan, [b for b in enumerate(plan.buckets) if b[1].receiver_set in mine or b[1].extent in owned])
    if rank in plan.topology.sinks:
        check_needs(plan, [rank], mine)
    _check_budget(plan, rank, budget, mine)
    _Part(plan, rank, mine).check()


def _check_budget(plan: Plan, rank: int, budget: int, mine: frozenset[int]) -> None:
    needed = sum(ring.nbytes for ring in plan.rings if ring.rank == rank)
    if plan.topology.participants[rank].keeps_tensors:
        come = [bucket for bucket in plan.buckets if bucket.receiver_set in mine]
        needed += most_kept(plan.manifest, come, plan.topology.share_of(rank))
    if needed > budget:
        raise BudgetError(f"rank {rank} would need {needed:,} bytes of memory and has a budget of {budget:,}")


class _Part:
    """Walks the stages of one rank in their order and follows every bucket that comes by.

    Args:
        plan: whose part is proved.
        rank: whose part.
        mine: the receiver sets that the rank belongs to.
    """

    def __init__(self, plan: Plan, rank: int, mine: frozenset[int]) -> None:
        self._plan, self._rank, self._mine = plan, rank, mine
        self._legs = [[leg for leg in hop.legs if rank == leg.sender or rank in leg.receivers] for hop in plan.hops]
        self._rings = {ring.use: ring for ring in plan.rings if ring.rank == rank}
        self._brought: dict[int, int] = {}
        """The stage that brought a bucket here; -1 when it lies here."""
        self._mapped: set[int] = set()
        """Buckets that are here in another rank's memory."""
        self._readers: defaultdict[tuple[RingUse, int], list[int]] = defaultdict(list)
        """For each slot: the stages that read what is in it."""
        self._holds: dict[tuple[RingUse, int], int] = {}
        """For each slot: the bucket in it."""
        self._lent: dict[int, int] = {}
        """Sends of mapped memory that end when the bucket is applied: their bucket by stage."""
        self._shown: defaultdict[int, deque[int]] = defaultdict(deque)
        """For each hop: the buckets that were mapped here and are not applied yet, oldest first."""
        self._applied: set[int] = set()
        """Buckets that have been applied, here or elsewhere."""

    def check(self) -> None:
        plan, rank, mine = self._plan, self._rank, self._mine
        owned = {number for number, extent in enumerate(plan.manifest.extents) if extent.owner == rank}
        fill, transfer = StageKind.FILL, StageKind.TRANSFER
        for number, stage in enumerate(plan.stages):
            if not 0 <= stage.bucket < len(plan.buckets):
                raise PlanError(f"stage {number} names bucket {stage.bucket}, which is not there")
            bucket = plan.buckets[stage.bucket]
            if stage.kind is transfer:
                if not 0 <= stage.hop < len(plan.hops):
                    raise PlanError(f"stage {number} names hop {stage.hop}, which is not there")
                if self._legs[stage.hop]:
                    self._check_waits(number, stage.after)
                    for leg in self._legs[stage.hop]:
                        self._transfer(number, stage.bucket, stage.after, leg, stage.hop)
            elif stage.kind is fill:
                if bucket.extent in owned:
                    self._check_waits(number, stage.after)
                    self._fill(number, stage.bucket, stage.after)
            else:
                if bucket.receiver_set in mine:
                    self._check_waits(number, stage.after, applies=stage.bucket)
                    self._apply(number, stage.bucket, stage.after)
                self._applied.add(stage.bucket)
        for number, bucket in enumerate(plan.buckets):
            if bucket.receiver_set in mine and number not in self._applied:
                raise CoverageError(f"bucket {number} is never applied")

    def _check_waits(self, number: int, after: tuple[int, ...], applies: int = -1) -> None:
        for earlier in after:
            if not 0 <= earlier < number:
                raise CoverageError(f"stage {number} waits for a stage that is not earlier, which can deadlock")
            lent = self._lent.get(earlier)
            if lent is not None and lent not in self._applied and lent != applies:
                raise CoverageError(
                    f"stage {number} waits for stage {earlier}, which ends when bucket {lent} is applied, "
                    "and that comes later: it can deadlock"
                )

    def _fill(self, number: int, which: int, after: tuple[int, ...]) -> None:
        bucket = self._plan.buckets[which]
        if bucket.fill_slot == IN_PLACE or which in self._brought:
            raise CoverageError(f"stage {number} fills bucket {which}, which needs no filling")
        self._overwrite(number, which, after, RingUse.FILL, bucket.fill_slot)
        self._brought[which] = number

    def _transfer(self, number: int, which: int, after: tuple[int, ...], leg: Leg, hop: int) -> None:
        bucket, maps = self._plan.buckets[which], self._plan.routes[leg.route].maps_memory
        if leg.sender == self._rank:
            self._send(number, which, after, bucket, maps=maps)
            return
        if which in self._brought or self._owns(bucket):
            raise CoverageError(f"stage {number} brings bucket {which} to rank {self._rank}, which has it already")
        if maps:
            self._mapped.add(which)
            if bucket.receiver_set in self._mine:
                self._shown[hop].append(which)
        else:
            self._overwrite(number, which, after, RingUse.RECEIVE, bucket.slot)
        self._brought[which] = number

    def _send(self, number: int, which: int, after: tuple[int, ...], bucket: Bucket, *, maps: bool) -> None:
        if which in self._mapped:
            raise PlanError(f"stage {number} sends bucket {which} from rank {self._rank}, which maps it")
        if maps:
            if bucket.gathered and bucket.fill_slot == IN_PLACE and self._owns(bucket):
                raise PlanError(f"stage {number} shows bucket {which} where it lies, and it lies in several ranges")
            self._lent[number] = which
        self._read(number, which, after, bucket)

    def _apply(self, number: int, which: int, after: tuple[int, ...]) -> None:
        if which in self._applied:
            raise CoverageError(f"stage {number} applies bucket {which} a second time")
        self._read(number, which, after, self._plan.buckets[which])
        if which in self._mapped:
            hop = self._plan.stages[self._brought[which]].hop
            if self._shown[hop].popleft() != which:
                raise CoverageError(f"stage {number} applies bucket {which} before one that was lent earlier")

    def _read(self, number: int, which: int, after: tuple[int, ...], bucket: Bucket) -> None:
        """``number`` uses the bucket: it is here, and the stage waits for whatever brought it."""
        brought = -1 if self._owns(bucket) and bucket.fill_slot == IN_PLACE else self._brought.get(which)
        if brought is None:
            raise CoverageError(f"stage {number} uses bucket {which} on rank {self._rank}, which lacks it")
        if brought >= 0 and brought not in after:
            raise CoverageError(f"stage {number} uses bucket {which} before stage {brought} has brought it")
        if brought < 0 or which in self._mapped:
            return
        slot = (RingUse.FILL, bucket.fill_slot) if self._owns(bucket) else (RingUse.RECEIVE, bucket.slot)
        if self._holds.get(slot) != which:
            raise CoverageError(f"stage {number} uses bucket {which} on rank {self._rank}, which lost its slot")
        self._readers[slot].append(number)

    def _overwrite(self, number: int, which: int, after: tuple[int, ...], use: RingUse, slot: int) -> None:
        ring = self._rings.get(use)
        if ring is None or not 0 <= slot < ring.depth or self._plan.buckets[which].nbytes > ring.slot_bytes:
            raise BudgetError(f"bucket {which} has no slot of its size on rank {self._rank}")
        for reader in self._readers.pop((use, slot), ()):
            if reader not in after:
                raise CoverageError(
                    f"stage {number} overwrites slot {slot} of rank {self._rank} while stage {reader} may still read it"
                )
        self._holds[use, slot] = which

    def _owns(self, bucket: Bucket) -> bool:
        return self._plan.owner(bucket) == self._rank
