"""The part of the proof that is about order and slots: it follows every bucket through the stages of all ranks."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

from ckpt_transport.errors import CoverageError, PlanError
from ckpt_transport.planning.values.plan import IN_PLACE, Plan, RingUse, Stage, StageKind


def _bits(ranks: Iterable[int]) -> int:
    bits = 0
    for rank in ranks:
        bits |= 1 << rank
    return bits


def _ranks(bits: int) -> list[int]:
    return [rank for rank in range(bits.bit_length()) if bits >> rank & 1]


class Flow:
    """Walks the stages in their order and follows every bucket. Sets of ranks are the bits of integers."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._receiver_sets = [_bits(receiver_set) for receiver_set in plan.receiver_sets]
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
            idle = reached & ~self._receiver_set(number) & ~self._passed[number]
            if idle:
                raise PlanError(f"bucket {number} goes to ranks {_ranks(idle)}, which neither need it nor pass it on")

    def _receiver_set(self, bucket: int) -> int:
        return self._receiver_sets[self._plan.buckets[bucket].receiver_set]

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
            return self._receiver_set(stage.bucket)
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
            raise PlanError(f"stage {number} shows bucket {stage.bucket} where it lies, and it lies in several ranges")
        if self._lenders[stage.hop]:
            self._lent[stage.hop].append(stage.bucket)
        has[number] = receivers
        self._passed[stage.bucket] |= senders
        self._note_reader(stage.bucket, senders, number)

    def _apply(self, number: int, stage: Stage) -> None:
        if self._applied[stage.bucket]:
            raise CoverageError(f"stage {number} applies bucket {stage.bucket} a second time")
        receiver_set = self._receiver_set(stage.bucket)
        self._check_present(number, stage, receiver_set)
        self._applied[stage.bucket] = True
        for bringer in self._has[stage.bucket]:
            if bringer < 0 or self._plan.stages[bringer].kind is not StageKind.TRANSFER:
                continue
            hop = self._plan.stages[bringer].hop
            if self._lenders[hop] and self._lent[hop].popleft() != stage.bucket:
                raise CoverageError(f"stage {number} applies bucket {stage.bucket} before one that was lent earlier")
        self._note_reader(stage.bucket, receiver_set, number)

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
