"""The proof that a plan does what it should, made before the first byte moves.

:func:`verify` shares no code with the planner but the values, so that a mistake in one is found by the other:

* **coverage**: each byte of every tensor has exactly one owner, or is present at every sink; the pieces of the buckets
  that a sink applies cover each byte that it needs exactly once, and every bucket reaches each sink of its audience
  exactly once, is applied there exactly once, and reaches nobody else who does not pass it on;
* **order**: a rank sends or applies a bucket only after it has it. Every stage waits for earlier stages only and posts
  along a route follow the order of stages, so the stages can be run one by one in that order: there is no deadlock.
  A send of mapped memory ends when the bucket has been applied where it is mapped, so nothing earlier waits for it;
* **slots**: a slot is not overwritten while a stage may still read it, nor before every stage that needs it has;
* **memory**: every bucket fits its slot, starts where tensors stay aligned, and every rank's rings fit its budget,
  together with what its loader keeps until it has all of a layer.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

from ckpt_transport.errors import BudgetError, CoverageError, PlanError
from ckpt_transport.planning.bucketing import ALIGNMENT
from ckpt_transport.planning.coverage import alike, check_pieces, check_runs, check_shares
from ckpt_transport.planning.modules import most_kept
from ckpt_transport.planning.plan import IN_PLACE, Plan, RingUse, Stage, StageKind


def verify(plan: Plan) -> None:
    """Prove ``plan``.

    Raises:
        CoverageError: a byte is missed, moved twice, or read before it is there; names the tensor or the stage.
        BudgetError: a ring is larger than its rank's budget, or a bucket than its slot.
        PlanError: the plan refers to something it does not contain, or is not one that can be run.
    """
    check_routes(plan)
    check_runs(plan)
    check_pieces(plan, enumerate(plan.buckets))
    check_shares(plan)
    _check_memory(plan)
    _Flow(plan).check()


def check_routes(plan: Plan) -> None:
    """Legs use routes of their own, whose members they are, and bring nothing to a rank twice."""
    size = len(plan.topology.participants)
    wanting = {*plan.topology.sinks, *(leg.sender for hop in plan.hops for leg in hop.legs)}
    used: set[int] = set()
    for number, hop in enumerate(plan.hops):
        receivers: list[int] = []
        for leg in hop.legs:
            if not 0 <= leg.route < len(plan.routes):
                raise PlanError(f"hop {number} names route {leg.route}, which is not there")
            if leg.route in used:
                raise PlanError(f"hop {number} uses route {leg.route}, which another leg uses")
            used.add(leg.route)
            members = (leg.sender, *leg.receivers)
            if sorted(members) != sorted(plan.routes[leg.route].ranks) or not all(0 <= rank < size for rank in members):
                raise PlanError(f"hop {number} connects ranks {members}, which are not those of route {leg.route}")
            receivers.extend(leg.receivers)
        if len(receivers) != len(set(receivers)):
            raise CoverageError(f"hop {number} sends a bucket to a rank twice")
        if not wanting.issuperset(receivers):
            idle = sorted(set(receivers) - wanting)
            raise PlanError(f"hop {number} sends to ranks {idle}, which are not sinks and pass nothing on")


def _check_memory(plan: Plan) -> None:
    check_rings(plan)
    used: defaultdict[int, int] = defaultdict(int)
    for ring in plan.rings:
        used[ring.rank] += ring.nbytes
    for (_, audiences), ranks in alike(plan).items():
        keepers = [rank for rank in ranks if plan.topology.participants[rank].keeps_tensors]
        if keepers:
            come = [bucket for bucket in plan.buckets if bucket.audience in audiences]
            kept = most_kept(plan.manifest, come, plan.topology.share_of(keepers[0]))
            used.update({rank: used[rank] + kept for rank in keepers})
    for rank, nbytes in used.items():
        budget = plan.topology.participants[rank].budget
        if nbytes > budget:
            raise BudgetError(f"rank {rank} would need {nbytes:,} bytes of memory and has a budget of {budget:,}")
    rings = {(ring.rank, ring.use): ring for ring in plan.rings}
    receiving = [ring for ring in plan.rings if ring.use is RingUse.RECEIVE]
    depth = min((ring.depth for ring in receiving), default=0)
    slot_bytes = receiving[0].slot_bytes if receiving else 0
    for number, bucket in enumerate(plan.buckets):
        fill = rings.get((plan.owner(bucket), RingUse.FILL))
        if bucket.fill_slot != IN_PLACE and (
            fill is None or bucket.nbytes > fill.slot_bytes or not 0 <= bucket.fill_slot < fill.depth
        ):
            raise BudgetError(f"bucket {number} has no slot of its size to be filled into")
        if bucket.slot != IN_PLACE and (bucket.nbytes > slot_bytes or not 0 <= bucket.slot < depth):
            raise BudgetError(f"bucket {number} has no slot of its size to be received into")


def check_rings(plan: Plan) -> None:
    """Every rank has one ring of a use, and all have slots of one size to receive into."""
    for ring in plan.rings:
        if not 0 <= ring.rank < len(plan.topology.participants):
            raise PlanError(f"a ring names rank {ring.rank}, which is not there")
        if ring.depth < 0 or ring.slot_bytes < 0 or ring.slot_bytes % ALIGNMENT:
            raise PlanError(f"rank {ring.rank} has a ring of {ring.depth} slots of {ring.slot_bytes:,} bytes")
    if len({(ring.rank, ring.use) for ring in plan.rings}) != len(plan.rings):
        raise PlanError("a rank has two rings of one use")
    if len({ring.slot_bytes for ring in plan.rings if ring.use is RingUse.RECEIVE}) > 1:
        raise PlanError("slots to receive into differ in size, and a transfer has one offset for all who receive it")


def _bits(ranks: Iterable[int]) -> int:
    bits = 0
    for rank in ranks:
        bits |= 1 << rank
    return bits


def _ranks(bits: int) -> list[int]:
    return [rank for rank in range(bits.bit_length()) if bits >> rank & 1]


class _Flow:
    """Walks the stages in their order and follows every bucket. Sets of ranks are the bits of integers."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._audiences = [_bits(audience) for audience in plan.audiences]
        self._passed = [0] * len(plan.buckets)
        """For each bucket: the ranks that have sent it on."""
        self._senders = [_bits(leg.sender for leg in hop.legs) for hop in plan.hops]
        self._receivers = [_bits(rank for leg in hop.legs for rank in leg.receivers) for hop in plan.hops]
        self._writes = [
            _bits(rank for leg in hop.legs if not plan.routes[leg.route].maps_memory for rank in leg.receivers)
            for hop in plan.hops
        ]
        self._lenders = [
            _bits(leg.sender for leg in hop.legs if plan.routes[leg.route].maps_memory) for hop in plan.hops
        ]
        ring_ranks = _bits(ring.rank for ring in plan.rings if ring.use is RingUse.RECEIVE)
        if any(writes & ~ring_ranks for writes in self._writes):
            raise PlanError("a rank receives without a ring to receive into")
        self._has: list[dict[int, int]] = [{} for _ in plan.buckets]
        """For each bucket: stage that brought it (-1: it lies there) to the ranks that have it from then on."""
        self._in_slot = [0] * len(plan.buckets)
        """For each bucket: the ranks that received it into a slot."""
        self._lost = [0] * len(plan.buckets)
        """For each bucket: the ranks whose slot has been given to another bucket since."""
        self._applied = [False] * len(plan.buckets)
        self._slot_readers: defaultdict[tuple[RingUse, int], list[list[int]]] = defaultdict(list)
        """For each slot: (ranks, stage) pairs, the stages that read what is in it on those ranks."""
        self._slot_holds: defaultdict[tuple[RingUse, int], list[list[int]]] = defaultdict(list)
        """For each slot: (ranks, bucket) pairs, what is in it on those ranks."""
        self._lent: list[deque[int]] = [deque() for _ in plan.hops]
        """For each hop that maps memory: the buckets it carried that are not applied yet, oldest first."""

    def check(self) -> None:
        for bucket, has in zip(self._plan.buckets, self._has, strict=True):
            if bucket.fill_slot == IN_PLACE:
                has[-1] = 1 << self._plan.owner(bucket)
        for number, stage in enumerate(self._plan.stages):
            if any(earlier >= number or earlier < 0 for earlier in stage.after):
                raise CoverageError(f"stage {number} waits for a stage that is not earlier, which can deadlock")
            if not 0 <= stage.bucket < len(self._plan.buckets):
                raise PlanError(f"stage {number} names bucket {stage.bucket}, which is not there")
            self._check_waits(number, stage)
            if stage.kind is StageKind.FILL:
                self._fill(number, stage)
            elif stage.kind is StageKind.TRANSFER:
                self._transfer(number, stage)
            else:
                self._apply(number, stage)
        for number, applied in enumerate(self._applied):
            if not applied:
                raise CoverageError(f"bucket {number} is never applied")
            reached = 0
            for bringer, ranks in self._has[number].items():
                reached |= ranks if bringer >= 0 and self._plan.stages[bringer].kind is StageKind.TRANSFER else 0
            idle = reached & ~self._audience(number) & ~self._passed[number]
            if idle:
                raise PlanError(f"bucket {number} goes to ranks {_ranks(idle)}, which neither need it nor pass it on")

    def _audience(self, bucket: int) -> int:
        return self._audiences[self._plan.buckets[bucket].audience]

    def _check_waits(self, number: int, stage: Stage) -> None:
        """No rank waits for a mapped send of its own that ends only when a later stage has applied the bucket."""
        for earlier in stage.after:
            waited = self._plan.stages[earlier]
            if waited.kind is not StageKind.TRANSFER or not self._lenders[waited.hop] or self._applied[waited.bucket]:
                continue
            if stage.kind is StageKind.APPLY and stage.bucket == waited.bucket:
                continue
            if self._lenders[waited.hop] & self._members(stage):
                raise CoverageError(
                    f"stage {number} waits for stage {earlier}, which ends when bucket {waited.bucket} is applied, "
                    "and that comes later: it can deadlock"
                )

    def _members(self, stage: Stage) -> int:
        """The ranks that take part in a stage."""
        if stage.kind is StageKind.FILL:
            return 1 << self._plan.owner(self._plan.buckets[stage.bucket])
        if stage.kind is StageKind.APPLY:
            return self._audience(stage.bucket)
        return self._senders[stage.hop] | self._receivers[stage.hop] if 0 <= stage.hop < len(self._senders) else 0

    def _fill(self, number: int, stage: Stage) -> None:
        bucket = self._plan.buckets[stage.bucket]
        if bucket.fill_slot == IN_PLACE or self._has[stage.bucket]:
            raise CoverageError(f"stage {number} fills bucket {stage.bucket}, which needs no filling")
        owner = 1 << self._plan.owner(bucket)
        self._overwrite(number, stage, (RingUse.FILL, bucket.fill_slot), owner)
        self._has[stage.bucket][number] = owner

    def _transfer(self, number: int, stage: Stage) -> None:
        bucket, has = self._plan.buckets[stage.bucket], self._has[stage.bucket]
        if not 0 <= stage.hop < len(self._plan.hops):
            raise PlanError(f"stage {number} names hop {stage.hop}, which is not there")
        senders, receivers, writes = self._senders[stage.hop], self._receivers[stage.hop], self._writes[stage.hop]
        self._check_present(number, stage, senders)
        mapped = senders & ~self._in_slot[stage.bucket] & ~(1 << self._plan.owner(bucket))
        if mapped:
            raise PlanError(f"stage {number} sends bucket {stage.bucket} from ranks {_ranks(mapped)}, which map it")
        if any(ranks & receivers for ranks in has.values()):
            raise CoverageError(f"stage {number} brings bucket {stage.bucket} to a rank that has it already")
        if writes:
            if bucket.slot == IN_PLACE:
                raise CoverageError(f"stage {number} receives bucket {stage.bucket}, which has no slot")
            self._overwrite(number, stage, (RingUse.RECEIVE, bucket.slot), writes)
            self._in_slot[stage.bucket] |= writes
        if (
            bucket.gathered
            and bucket.fill_slot == IN_PLACE
            and self._lenders[stage.hop] & (1 << self._plan.owner(bucket))
        ):
            raise PlanError(f"stage {number} shows bucket {stage.bucket} where it lies, and it lies in several runs")
        if self._lenders[stage.hop]:
            self._lent[stage.hop].append(stage.bucket)
        has[number] = receivers
        self._passed[stage.bucket] |= senders
        self._note_reader(stage.bucket, senders, number)

    def _apply(self, number: int, stage: Stage) -> None:
        if self._applied[stage.bucket]:
            raise CoverageError(f"stage {number} applies bucket {stage.bucket} a second time")
        audience = self._audience(stage.bucket)
        self._check_present(number, stage, audience)
        self._applied[stage.bucket] = True
        for bringer in self._has[stage.bucket]:
            if bringer < 0 or self._plan.stages[bringer].kind is not StageKind.TRANSFER:
                continue
            hop = self._plan.stages[bringer].hop
            if self._lenders[hop] and self._lent[hop].popleft() != stage.bucket:
                raise CoverageError(f"stage {number} applies bucket {stage.bucket} before one that was lent earlier")
        self._note_reader(stage.bucket, audience, number)

    def _check_present(self, number: int, stage: Stage, ranks: int) -> None:
        """All ``ranks`` have the stage's bucket, and the stage waits for whatever brought it."""
        missing = ranks
        for bringer, holders in self._has[stage.bucket].items():
            if holders & ranks:
                missing &= ~holders
                if bringer >= 0 and bringer not in stage.after:
                    raise CoverageError(
                        f"stage {number} uses bucket {stage.bucket} before stage {bringer} has brought it"
                    )
        missing |= ranks & self._lost[stage.bucket]
        if missing:
            raise CoverageError(f"stage {number} uses bucket {stage.bucket} on ranks {_ranks(missing)}, which lack it")

    def _overwrite(self, number: int, stage: Stage, slot: tuple[RingUse, int], ranks: int) -> None:
        readers = self._slot_readers[slot]
        for entry in readers:
            holders, reader = entry
            if holders & ranks and reader not in stage.after:
                raise CoverageError(
                    f"stage {number} overwrites slot {slot[1]} of ranks {_ranks(holders & ranks)} "
                    f"while stage {reader} may still read it"
                )
            entry[0] = holders & ~ranks
        readers[:] = [entry for entry in readers if entry[0]]
        holds = self._slot_holds[slot]
        for held in holds:
            self._lost[held[1]] |= held[0] & ranks
            held[0] &= ~ranks
        holds[:] = [*(held for held in holds if held[0]), [ranks, stage.bucket]]

    def _note_reader(self, bucket_number: int, ranks: int, stage: int) -> None:
        """``stage`` reads the bucket on ``ranks``, out of whichever slots they hold it in."""
        bucket, plan = self._plan.buckets[bucket_number], self._plan
        owner = 1 << plan.owner(bucket)
        if bucket.fill_slot != IN_PLACE and ranks & owner:
            self._slot_readers[RingUse.FILL, bucket.fill_slot].append([owner, stage])
        received = self._in_slot[bucket_number] & ranks
        if received:
            self._slot_readers[RingUse.RECEIVE, bucket.slot].append([received, stage])
