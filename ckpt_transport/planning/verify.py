"""The proof that a plan does what it should, made before the first byte moves.

:func:`verify` shares no code with the planner but the values, so that a mistake in one is found by the other:

* **coverage**: the pieces of every tensor cover each of its bytes exactly once, and every bucket reaches every sink
  exactly once and is applied there exactly once;
* **order**: a rank sends or applies a bucket only after it has it. Every stage waits for earlier stages only and posts
  along a route follow the order of stages, so the stages can be run one by one in that order: there is no deadlock;
* **slots**: a slot is not overwritten while a stage may still read it;
* **memory**: every bucket fits its slot and every rank's rings fit its budget.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ckpt_transport.errors import BudgetError, CoverageError, PlanError
from ckpt_transport.planning.plan import IN_PLACE, Plan, RingUse, Stage, StageKind


def verify(plan: Plan) -> None:
    """Prove ``plan``.

    Raises:
        CoverageError: a byte is missed, moved twice, or read before it is there; names the tensor or the stage.
        BudgetError: a ring is larger than its rank's budget, or a bucket than its slot.
        PlanError: the plan refers to something it does not contain.
    """
    _check_routes(plan)
    _check_pieces(plan)
    _check_memory(plan)
    _Flow(plan).check()


def _check_routes(plan: Plan) -> None:
    size = len(plan.topology.participants)
    for number, hop in enumerate(plan.hops):
        receivers: list[int] = []
        for leg in hop.legs:
            if not 0 <= leg.route < len(plan.routes):
                raise PlanError(f"hop {number} names route {leg.route}, which is not there")
            members = (leg.sender, *leg.receivers)
            if sorted(members) != sorted(plan.routes[leg.route].ranks) or not all(0 <= rank < size for rank in members):
                raise PlanError(f"hop {number} connects ranks {members}, which are not those of route {leg.route}")
            receivers.extend(leg.receivers)
        if len(receivers) != len(set(receivers)):
            raise CoverageError(f"hop {number} sends a bucket to a rank twice")


def _check_pieces(plan: Plan) -> None:
    """Every byte of every tensor lies in exactly one piece, and pieces lie where their bucket says."""
    tensors, extents = plan.manifest.tensors, plan.manifest.extents
    covered: list[list[tuple[int, int]]] = [[] for _ in tensors]
    for number, bucket in enumerate(plan.buckets):
        if not 0 <= bucket.extent < len(extents) or bucket.offset + bucket.nbytes > extents[bucket.extent].nbytes:
            raise PlanError(f"bucket {number} lies outside its extent")
        for piece in bucket.pieces:
            if not 0 <= piece.tensor < len(tensors):
                raise PlanError(f"bucket {number} names tensor {piece.tensor}, which is not there")
            tensor = tensors[piece.tensor]
            misplaced = bucket.offset + piece.bucket_offset != tensor.offset + piece.tensor_offset
            if misplaced or bucket.extent != tensor.extent or piece.bucket_offset + piece.nbytes > bucket.nbytes:
                raise CoverageError(f"bucket {number} does not lie over tensor {tensor.spec.name} where it says")
            covered[piece.tensor].append((piece.tensor_offset, piece.nbytes))
    for tensor, runs in zip(tensors, covered, strict=True):
        reached = 0
        for offset, nbytes in sorted(runs):
            if offset != reached:
                fault = "are missed" if offset > reached else "move twice"
                raise CoverageError(f"bytes {min(offset, reached)} to {max(offset, reached)} of {tensor.spec.name} {fault}")
            reached += nbytes
        if reached != tensor.nbytes or not runs:
            raise CoverageError(f"bytes {reached} to {tensor.nbytes} of {tensor.spec.name} are missed")


def _check_memory(plan: Plan) -> None:
    used: defaultdict[int, int] = defaultdict(int)
    for ring in plan.rings:
        used[ring.rank] += ring.nbytes
    for rank, nbytes in used.items():
        budget = plan.topology.participants[rank].budget
        if nbytes > budget:
            raise BudgetError(f"rank {rank} would need {nbytes:,} bytes of slots and has a budget of {budget:,}")
    rings = {(ring.rank, ring.use): ring for ring in plan.rings}
    receiving = [ring for ring in plan.rings if ring.use is RingUse.RECEIVE]
    for number, bucket in enumerate(plan.buckets):
        fill = rings.get((plan.owner(bucket), RingUse.FILL))
        if bucket.fill_slot != IN_PLACE and (
            fill is None or bucket.nbytes > fill.slot_bytes or not 0 <= bucket.fill_slot < fill.depth
        ):
            raise BudgetError(f"bucket {number} has no slot of its size to be filled into")
        if bucket.slot != IN_PLACE:
            for ring in receiving:
                if bucket.nbytes > ring.slot_bytes or not 0 <= bucket.slot < ring.depth:
                    raise BudgetError(f"bucket {number} has no slot of its size at rank {ring.rank}")


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
        self._sinks = _bits(plan.topology.sinks)
        self._senders = [_bits(leg.sender for leg in hop.legs) for hop in plan.hops]
        self._receivers = [_bits(rank for leg in hop.legs for rank in leg.receivers) for hop in plan.hops]
        self._writes = [
            _bits(rank for leg in hop.legs if not plan.routes[leg.route].maps_memory for rank in leg.receivers)
            for hop in plan.hops
        ]
        ring_ranks = _bits(ring.rank for ring in plan.rings if ring.use is RingUse.RECEIVE)
        if any(writes & ~ring_ranks for writes in self._writes):
            raise PlanError("a rank receives without a ring to receive into")
        self._has: list[dict[int, int]] = [{} for _ in plan.buckets]
        """For each bucket: stage that brought it (-1: it lies there) to the ranks that have it from then on."""
        self._applied = [False] * len(plan.buckets)
        self._slot_readers: defaultdict[tuple[RingUse, int], list[list[int]]] = defaultdict(list)
        """For each slot: (ranks, stage) pairs, the stages that read what is in it on those ranks."""

    def check(self) -> None:
        for bucket, has in zip(self._plan.buckets, self._has, strict=True):
            if bucket.fill_slot == IN_PLACE:
                has[-1] = 1 << self._plan.owner(bucket)
        for number, stage in enumerate(self._plan.stages):
            if any(earlier >= number or earlier < 0 for earlier in stage.after):
                raise CoverageError(f"stage {number} waits for a stage that is not earlier, which can deadlock")
            if not 0 <= stage.bucket < len(self._plan.buckets):
                raise PlanError(f"stage {number} names bucket {stage.bucket}, which is not there")
            if stage.kind is StageKind.FILL:
                self._fill(number, stage)
            elif stage.kind is StageKind.TRANSFER:
                self._transfer(number, stage)
            else:
                self._apply(number, stage)
        for number, applied in enumerate(self._applied):
            if not applied:
                raise CoverageError(f"bucket {number} is never applied")

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
        if any(ranks & receivers for ranks in has.values()):
            raise CoverageError(f"stage {number} brings bucket {stage.bucket} to a rank that has it already")
        if writes:
            if bucket.slot == IN_PLACE:
                raise CoverageError(f"stage {number} receives bucket {stage.bucket}, which has no slot")
            self._overwrite(number, stage, (RingUse.RECEIVE, bucket.slot), writes)
        has[number] = receivers
        self._note_reader(stage.bucket, senders, number)

    def _apply(self, number: int, stage: Stage) -> None:
        if self._applied[stage.bucket]:
            raise CoverageError(f"stage {number} applies bucket {stage.bucket} a second time")
        self._check_present(number, stage, self._sinks)
        self._applied[stage.bucket] = True
        self._note_reader(stage.bucket, self._sinks, number)

    def _check_present(self, number: int, stage: Stage, ranks: int) -> None:
        """All ``ranks`` have the stage's bucket, and the stage waits for whatever brought it."""
        missing = ranks
        for bringer, holders in self._has[stage.bucket].items():
            if holders & ranks:
                missing &= ~holders
                if bringer >= 0 and bringer not in stage.after:
                    raise CoverageError(f"stage {number} uses bucket {stage.bucket} without waiting for stage {bringer}")
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

    def _note_reader(self, bucket_number: int, ranks: int, stage: int) -> None:
        """``stage`` reads the bucket on ``ranks``, out of whichever slots they hold it in."""
        bucket, plan = self._plan.buckets[bucket_number], self._plan
        owner = 1 << plan.owner(bucket)
        if bucket.fill_slot != IN_PLACE and ranks & owner:
            self._slot_readers[RingUse.FILL, bucket.fill_slot].append([owner, stage])
        if bucket.slot == IN_PLACE:
            return
        written = 0
        for bringer in self._has[bucket_number]:
            if bringer >= 0 and plan.stages[bringer].kind is StageKind.TRANSFER:
                written |= self._writes[plan.stages[bringer].hop]
        if written & ranks:
            self._slot_readers[RingUse.RECEIVE, bucket.slot].append([written & ranks, stage])
