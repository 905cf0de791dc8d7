"""The part of the proof that is about order and slots: it follows every bucket through the stages of some ranks."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

from ckpt_transport.errors import BudgetError, CoverageError, PlanError
from ckpt_transport.planning.values.plan import IN_PLACE, Bucket, Plan, RingUse, Stage, StageKind


def _bits(ranks: Iterable[int]) -> int:
    bits = 0
    for rank in ranks:
        bits |= 1 << rank
    return bits


def _ranks(bits: int) -> list[int]:
    return [rank for rank in range(bits.bit_length()) if bits >> rank & 1]


class Flow:
    """Walks the stages in their order and follows every bucket. Sets of ranks are the bits of integers.

    Args:
        plan: whose stages.
        ranks: whose part of them is looked at. What others do counts only where these ranks depend on it.
    """

    def __init__(self, plan: Plan, ranks: Iterable[int]) -> None:
        self._plan, seen = plan, _bits(ranks)
        self._owners = [seen & 1 << extent.owner for extent in plan.manifest.extents]
        self._receiver_sets = [seen & _bits(receiver_set) for receiver_set in plan.receiver_sets]
        self._passed = [0] * len(plan.buckets)
        """For each bucket: the ranks that have sent it on."""
        self._senders = [seen & _bits(leg.sender for leg in hop.legs) for hop in plan.hops]
        self._receivers = [seen & _bits(rank for leg in hop.legs for rank in leg.receivers) for hop in plan.hops]
        mapping = [[leg for leg in hop.legs if plan.routes[leg.route].maps_memory] for hop in plan.hops]
        self._lenders = [seen & _bits(leg.sender for leg in legs) for legs in mapping]
        self._maps = [seen & _bits(rank for leg in legs for rank in leg.receivers) for legs in mapping]
        """For each hop: the ranks that see the sender's memory; the others that receive write to a slot."""
        self._fill_rings = {ring.rank: ring for ring in plan.rings if ring.use is RingUse.FILL}
        into = [ring for ring in plan.rings if ring.use is RingUse.RECEIVE and seen >> ring.rank & 1]
        ring_ranks = _bits(ring.rank for ring in into)
        if any(receivers & ~maps & ~ring_ranks for receivers, maps in zip(self._receivers, self._maps, strict=True)):
            raise PlanError("a rank receives without a ring to receive into")
        self._depth = min((ring.depth for ring in into), default=0)
        self._slot_bytes = min((ring.slot_bytes for ring in into), default=0)
        self._has: defaultdict[int, dict[int, int]] = defaultdict(dict)
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
        """For each hop: the buckets that were mapped along it and are not applied yet, oldest first."""

    def check(self) -> None:
        plan, fill, apply = self._plan, StageKind.FILL, StageKind.APPLY
        for which, bucket in enumerate(plan.buckets):
            if bucket.fill_slot == IN_PLACE and self._owners[bucket.extent]:
                self._has[which][-1] = self._owners[bucket.extent]
        for number, stage in enumerate(plan.stages):
            if not 0 <= stage.bucket < len(plan.buckets):
                raise PlanError(f"stage {number} names bucket {stage.bucket}, which is not there")
            bucket = plan.buckets[stage.bucket]
            if stage.kind is fill:
                if owner := self._owners[bucket.extent]:
                    self._check_waits(number, stage, owner)
                    self._fill(number, stage, bucket, owner)
            elif stage.kind is apply:
                if receivers := self._receiver_sets[bucket.receiver_set]:
                    self._check_waits(number, stage, receivers)
                    self._apply(number, stage, receivers)
                self._applied[stage.bucket] = True
            elif not 0 <= stage.hop < len(plan.hops):
                raise PlanError(f"stage {number} names hop {stage.hop}, which is not there")
            elif members := self._senders[stage.hop] | self._receivers[stage.hop]:
                self._check_waits(number, stage, members)
                self._transfer(number, stage, bucket)
        for which, bucket in enumerate(plan.buckets):
            receivers = self._receiver_sets[bucket.receiver_set]
            if receivers and not self._applied[which]:
                raise CoverageError(f"bucket {which} is never applied")
            needed, idle = receivers | self._passed[which] | self._owners[bucket.extent], 0
            for ranks in self._has[which].values():
                idle |= ranks & ~needed
            if idle:
                raise PlanError(f"bucket {which} goes to ranks {_ranks(idle)}, which neither need it nor pass it on")

    def _check_waits(self, number: int, stage: Stage, members: int) -> None:
        """A stage waits for earlier ones only, and no member for a mapped send of its own that a later stage ends."""
        transfer, ended = StageKind.TRANSFER, stage.bucket if stage.kind is StageKind.APPLY else -1
        for earlier in stage.after:
            if not 0 <= earlier < number:
                raise CoverageError(f"stage {number} waits for a stage that is not earlier, which can deadlock")
            waited = self._plan.stages[earlier]
            if waited.kind is not transfer or waited.bucket == ended or self._applied[waited.bucket]:
                continue
            if self._lenders[waited.hop] & members:
                raise CoverageError(
                    f"stage {number} waits for stage {earlier}, which ends when bucket {waited.bucket} is applied, "
                    "and that comes later: it can deadlock"
                )

    def _fill(self, number: int, stage: Stage, bucket: Bucket, owner: int) -> None:
        if bucket.fill_slot == IN_PLACE or self._has[stage.bucket]:
            raise CoverageError(f"stage {number} fills bucket {stage.bucket}, which needs no filling")
        ring = self._fill_rings.get(self._plan.owner(bucket))
        if ring is None or bucket.nbytes > ring.slot_bytes or not 0 <= bucket.fill_slot < ring.depth:
            raise BudgetError(f"bucket {stage.bucket} has no slot of its size to be filled into")
        self._overwrite(number, stage, (RingUse.FILL, bucket.fill_slot), owner)
        self._has[stage.bucket][number] = owner

    def _transfer(self, number: int, stage: Stage, bucket: Bucket) -> None:
        has, hop, owner = self._has[stage.bucket], stage.hop, self._owners[bucket.extent]
        senders, receivers, writes = self._senders[hop], self._receivers[hop], self._receivers[hop] & ~self._maps[hop]
        self._check_present(number, stage, senders)
        mapped = senders & ~self._in_slot[stage.bucket] & ~owner
        if mapped:
            raise PlanError(f"stage {number} sends bucket {stage.bucket} from ranks {_ranks(mapped)}, which map it")
        for ranks in has.values():
            if ranks & receivers:
                raise CoverageError(f"stage {number} brings bucket {stage.bucket} to a rank that has it already")
        if writes:
            if bucket.slot == IN_PLACE:
                raise CoverageError(f"stage {number} receives bucket {stage.bucket}, which has no slot")
            if bucket.nbytes > self._slot_bytes or not 0 <= bucket.slot < self._depth:
                raise BudgetError(f"bucket {stage.bucket} has no slot of its size to be received into")
            self._overwrite(number, stage, (RingUse.RECEIVE, bucket.slot), writes)
            self._in_slot[stage.bucket] |= writes
        if self._maps[hop]:
            self._lent[hop].append(stage.bucket)
        if receivers:
            has[number] = receivers
        self._passed[stage.bucket] |= senders
        self._note_reader(bucket, stage.bucket, senders, number)

    def _apply(self, number: int, stage: Stage, receivers: int) -> None:
        if self._applied[stage.bucket]:
            raise CoverageError(f"stage {number} applies bucket {stage.bucket} a second time")
        self._check_present(number, stage, receivers)
        for bringer in self._has[stage.bucket]:
            if bringer < 0 or self._plan.stages[bringer].kind is not StageKind.TRANSFER:
                continue
            hop = self._plan.stages[bringer].hop
            if self._maps[hop] and self._lent[hop].popleft() != stage.bucket:
                raise CoverageError(f"stage {number} applies bucket {stage.bucket} before one that was lent earlier")
        self._note_reader(self._plan.buckets[stage.bucket], stage.bucket, receivers, number)

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

    def _note_reader(self, bucket: Bucket, which: int, ranks: int, stage: int) -> None:
        """``stage`` reads the bucket on ``ranks``, out of whichever slots they hold it in."""
        owner = self._owners[bucket.extent]
        if bucket.fill_slot != IN_PLACE and ranks & owner:
            self._slot_readers[RingUse.FILL, bucket.fill_slot].append([owner, stage])
        received = self._in_slot[which] & ranks
        if received:
            self._slot_readers[RingUse.RECEIVE, bucket.slot].append([received, stage])
