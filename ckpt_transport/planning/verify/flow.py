"""The part of the proof that is about order and slots: it follows every bucket through the stages of some ranks.

Buckets take turns: the stages of one stand together, as a block, and no stage of an earlier bucket comes after them. So
whether a block is right depends on itself, and on who reads the slots that it writes to. In that the blocks of a large
plan are alike. One of those that are alike is *proved*, stage by stage and rank by rank; the others are compared with
it: the same pattern, the same kind of bucket, and in its slots what blocks have left that are alike themselves, found
where the block says that its earlier blocks are. Nothing is taken for alike because somebody says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from ckpt_transport.errors import BudgetError, CoverageError, PlanError
from ckpt_transport.planning.values.plan import IN_PLACE, Bucket, Plan, RingUse
from ckpt_transport.planning.values.stages import OWN, Block, PatternStage, StageKind

NOT_AWAITED = -1
"""Which of its earlier blocks a block means, where it means none of them."""


class _Left(NamedTuple):
    """What a block has left in a slot.

    Attributes:
        block: its number.
        proof: the number of its proof.
        ranks: those in whose slots it is still, as the bits of an integer.
    """

    block: int
    proof: int
    ranks: int


class _Kind(NamedTuple):
    """All that the proof of a block takes into account of its bucket."""

    owner: int
    receiver_set: int
    filled: bool
    has_slot: bool


class _Before(NamedTuple):
    """A block whose bucket is still in a slot: which of the earlier blocks it is, what was proved of it, and where."""

    which: int
    proof: int
    ranks: int


class _Situation(NamedTuple):
    """What a proof is about. Blocks in equal situations are alike."""

    pattern: int
    kind: _Kind
    lengths: tuple[int, ...]
    """Of the patterns of the earlier blocks."""
    fill_slot: tuple[_Before, ...]
    slot: tuple[_Before, ...]


class _Proof(NamedTuple):
    """What a block leaves behind, as was found of one, and holds for all that are alike.

    Attributes:
        fills, writes: the ranks whose slots it writes to, as the bits of an integer.
        fill_readers: positions of the stages that read the slot that the bucket was filled into.
        readers: for each rank that received it into a slot, positions of the stages that read it there.
    """

    fills: int
    writes: int
    fill_readers: frozenset[int]
    readers: Mapping[int, frozenset[int]]


@dataclass(frozen=True, slots=True)
class _Members:
    """Who does what in a hop, of the ranks that are looked at; ``lenders`` have their memory mapped by ``maps``."""

    senders: Set[int]
    receivers: Set[int]
    lenders: Set[int]
    maps: Set[int]


def _bits(ranks: Iterable[int]) -> int:
    return sum(1 << rank for rank in ranks)


class Flow:
    """Follows every bucket through its stages, in the order of the plan.

    Args:
        plan: whose stages.
        ranks: whose part of them is looked at. What others do counts only where these ranks depend on it.
    """

    def __init__(self, plan: Plan, ranks: Iterable[int]) -> None:
        self._plan, self._ranks = plan, frozenset(ranks)
        self._receiver_sets = [self._ranks.intersection(receiver_set) for receiver_set in plan.receiver_sets]
        self._hops: dict[int, _Members] = {}
        self._writes: dict[int, int] = {}
        self._fill_rings = {ring.rank: ring for ring in plan.rings if ring.use is RingUse.FILL}
        self._rings = {
            ring.rank: ring for ring in plan.rings if ring.use is RingUse.RECEIVE and ring.rank in self._ranks
        }
        self._depth = min((ring.depth for ring in self._rings.values()), default=0)
        self._slot_bytes = min((ring.slot_bytes for ring in self._rings.values()), default=0)
        self._proved: dict[_Situation, int] = {}
        """The proof of each situation."""
        self._proofs: list[_Proof] = []
        self._numbers: dict[Hashable, int] = {}
        """Proofs that leave the same behind have one number."""
        self._left: defaultdict[tuple[RingUse, int, int], tuple[_Left, ...]] = defaultdict(tuple)
        """For each slot: what is in it. Slots to fill are their owner's; all have the same slots to receive into."""

    def check(self) -> None:
        for number in range(len(self._plan.hops)):
            members = self._hop(number)
            if not members.receivers - members.maps <= self._rings.keys():
                raise PlanError("a rank receives without a ring to receive into")
        for number, block in enumerate(self._plan.stages.blocks):
            self._check(number, block, self._plan.buckets[block.bucket])
        if len(self._plan.stages.blocks) < len(self._plan.buckets):
            raise CoverageError(f"bucket {len(self._plan.stages.blocks)} is never applied")

    def _hop(self, number: int) -> _Members:
        if number not in self._hops:
            legs = self._plan.hops[number].legs
            mapped = [leg for leg in legs if self._plan.routes[leg.route].maps_memory]
            self._hops[number] = _Members(
                self._ranks.intersection(leg.sender for leg in legs),
                self._ranks.intersection(chain.from_iterable(leg.receivers for leg in legs)),
                self._ranks.intersection(leg.sender for leg in mapped),
                self._ranks.intersection(chain.from_iterable(leg.receivers for leg in mapped)),
            )
        return self._hops[number]

    def _check(self, number: int, block: Block, bucket: Bucket) -> None:
        """Prove a block, or find it to be like one that is proved; then note what it leaves in its slots."""
        owner = self._plan.owner(bucket)
        fill_slot, slot = (RingUse.FILL, owner, bucket.fill_slot), (RingUse.RECEIVE, -1, bucket.slot)
        which = {number - back: n for n, back in enumerate(block.earlier, 1)}
        situation = _Situation(
            block.pattern,
            _Kind(owner, bucket.receiver_set, bucket.fill_slot != IN_PLACE, bucket.slot != IN_PLACE),
            tuple([self._length(number, back) for back in block.earlier]),
            tuple(self._before(which, fill_slot, ~0)),
            tuple(self._before(which, slot, self._written(block.pattern))),
        )
        known = self._proved.get(situation)
        if known is None:
            known = self._proved[situation] = self._number(_Walk(self, situation, number).proof())
        proof = self._proofs[known]
        if proof.fills:
            ring = self._fill_rings.get(owner)
            if ring is None or bucket.nbytes > ring.slot_bytes or not 0 <= bucket.fill_slot < ring.depth:
                raise BudgetError(f"bucket {block.bucket} has no slot of its size to be filled into")
            self._left[fill_slot] = (_Left(number, known, proof.fills),)
        if proof.writes:
            if bucket.nbytes > self._slot_bytes or not 0 <= bucket.slot < self._depth:
                raise BudgetError(f"bucket {block.bucket} has no slot of its size to be received into")
            others = [
                left._replace(ranks=left.ranks & ~proof.writes) if left.ranks & proof.writes else left
                for left in self._left[slot]
            ]
            self._left[slot] = (*(left for left in others if left.ranks), _Left(number, known, proof.writes))

    def _number(self, proof: _Proof) -> int:
        key = *proof[:3], frozenset(proof.readers.items())
        if key not in self._numbers:
            self._numbers[key] = len(self._proofs)
            self._proofs.append(proof)
        return self._numbers[key]

    def _length(self, number: int, back: int) -> int:
        """How many stages that earlier block has."""
        if not 0 < back <= number:
            raise CoverageError(f"bucket {number} waits for stages that are not earlier, which can deadlock")
        return len(self._plan.stages.pattern(number - back))

    def _written(self, pattern: int) -> int:
        """The ranks whose slots a block of that pattern writes to, as the bits of an integer."""
        if pattern not in self._writes:
            hops = {stage.hop for stage in self._plan.stages.patterns[pattern] if stage.kind is StageKind.TRANSFER}
            members = map(self._hop, hops)
            self._writes[pattern] = _bits({rank for hop in members for rank in hop.receivers - hop.maps})
        return self._writes[pattern]

    def _before(self, which: Mapping[int, int], slot: tuple[RingUse, int, int], ranks: int) -> Iterable[_Before]:
        """What is in a slot of some ranks, as a block sees it that counts its earlier blocks in this way."""
        for left in self._left[slot] if slot[2] != IN_PLACE else ():
            if left.ranks & ranks:
                yield _Before(which.get(left.block, NOT_AWAITED), left.proof, left.ranks & ranks)

    def members(self, number: int) -> _Members:
        """Who does what in a hop."""
        return self._hop(number)

    def proof(self, number: int) -> _Proof:
        """What was proved under that number."""
        return self._proofs[number]

    def ranks_of(self, kind: _Kind) -> tuple[frozenset[int], frozenset[int]]:
        """Of the ranks that are looked at: the owner of a kind of bucket, and the sinks that apply it."""
        return self._ranks.intersection((kind.owner,)), self._receiver_sets[kind.receiver_set]

    def pattern(self, number: int) -> Sequence[PatternStage]:
        """The stages of a block."""
        return self._plan.stages.pattern(number)

    def start(self, number: int) -> int:
        """The number of the first stage of a block."""
        return self._plan.stages.start(number)


class _Walk:
    """Walks the stages of one block in their order, and proves them.

    Args:
        flow: what is known of the plan.
        situation: what the proof is about.
        block: the number of one block in that situation, for errors.
    """

    def __init__(self, flow: Flow, situation: _Situation, block: int) -> None:
        self._flow, self._situation, self._block = flow, situation, block
        self._owner, self._receivers = flow.ranks_of(situation.kind)
        self._pattern, self._start = flow.pattern(block), flow.start(block)
        self._has: dict[int, int] = {}
        """For each rank that has the bucket: the position of the stage that brought it; -1 where it lies there."""
        self._passed: set[int] = set()
        self._applied = False
        self._fills: Set[int] = frozenset()
        self._fill_readers: set[int] = set()
        self._readers: dict[int, set[int]] = {}
        """For each rank that has the bucket in a slot: the positions of the stages that read it there."""

    def proof(self) -> _Proof:
        """Raises: CoverageError or PlanError, where the block is wrong."""
        if not self._situation.kind.filled:
            self._has.update(dict.fromkeys(self._owner, -1))
        for position, stage in enumerate(self._pattern):
            self._check_earlier(position, stage)
            if stage.kind is StageKind.FILL:
                if self._owner:
                    self._check_waits(position, stage, self._owner)
                    self._fill(position, stage)
            elif stage.kind is StageKind.APPLY:
                if self._applied:
                    raise CoverageError(f"stage {self._start + position} applies bucket {self._block} a second time")
                if self._receivers:
                    self._check_waits(position, stage, self._receivers)
                    self._check_present(position, stage, self._receivers)
                    self._note_readers(position, self._receivers)
                self._applied = True
            elif members := (hop := self._flow.members(stage.hop)).senders | hop.receivers:
                self._check_waits(position, stage, members)
                self._transfer(position, stage, hop)
        if not self._applied:
            raise CoverageError(f"bucket {self._block} is never applied")
        idle = self._has.keys() - self._receivers - self._passed - self._owner
        if idle:
            raise PlanError(f"bucket {self._block} goes to ranks {sorted(idle)}, which neither need it nor pass it on")
        readers = {rank: frozenset(reading) for rank, reading in self._readers.items()}
        return _Proof(_bits(self._fills), _bits(readers), frozenset(self._fill_readers), readers)

    def _check_earlier(self, position: int, stage: PatternStage) -> None:
        """A stage waits for stages that are there, and earlier."""
        lengths = position, *self._situation.lengths
        for which, waited in stage.after:
            if not (0 <= which < len(lengths) and 0 <= waited < lengths[which]):
                raise CoverageError(
                    f"stage {self._start + position} waits for a stage that is not earlier, which can deadlock"
                )

    def _check_waits(self, position: int, stage: PatternStage, members: Set[int]) -> None:
        """No member waits for a mapped send of its own that a later stage ends. Earlier buckets are applied already."""
        if self._applied or stage.kind is StageKind.APPLY:
            return
        for which, waited in stage.after:
            sent = self._pattern[waited] if which == OWN else None
            if sent is not None and sent.kind is StageKind.TRANSFER and self._flow.members(sent.hop).lenders & members:
                raise CoverageError(
                    f"stage {self._start + position} waits for stage {self._start + waited}, which ends when bucket "
                    f"{self._block} is applied, and that comes later: it can deadlock"
                )

    def _fill(self, position: int, stage: PatternStage) -> None:
        if not self._situation.kind.filled or self._has:
            raise CoverageError(f"stage {self._start + position} fills bucket {self._block}, which needs no filling")
        for before in self._situation.fill_slot:
            readers = {rank: self._flow.proof(before.proof).fill_readers for rank in self._owner}
            self._check_overwritten(position, stage, before, readers)
        self._fills = self._owner
        self._has.update(dict.fromkeys(self._owner, position))

    def _transfer(self, position: int, stage: PatternStage, hop: _Members) -> None:
        number = self._start + position
        writes = hop.receivers - hop.maps
        self._check_present(position, stage, hop.senders)
        mapped = {rank for rank in hop.senders - self._owner if rank not in self._readers}
        if mapped:
            raise PlanError(f"stage {number} sends bucket {self._block} from ranks {sorted(mapped)}, which map it")
        if not self._has.keys().isdisjoint(hop.receivers):
            raise CoverageError(f"stage {number} brings bucket {self._block} to a rank that has it already")
        if hop.maps and self._applied:
            raise CoverageError(f"stage {number} lends bucket {self._block}, which has been applied")
        if writes:
            if not self._situation.kind.has_slot:
                raise CoverageError(f"stage {number} receives bucket {self._block}, which has no slot")
            for before in self._situation.slot:
                readers = self._flow.proof(before.proof).readers
                here = {rank: readers[rank] for rank in writes if rank in readers}
                if here:
                    self._check_overwritten(position, stage, before, here)
            self._readers.update((rank, set()) for rank in writes)
        self._has.update(dict.fromkeys(hop.receivers, position))
        self._passed |= hop.senders
        self._note_readers(position, hop.senders)

    def _check_present(self, position: int, stage: PatternStage, ranks: Set[int]) -> None:
        """All ``ranks`` have the bucket, and the stage waits for whatever brought it."""
        number = self._start + position
        if not self._has.keys() >= ranks:
            missing = sorted(ranks - self._has.keys())
            raise CoverageError(f"stage {number} uses bucket {self._block} on ranks {missing}, which lack it")
        waits = {waited for which, waited in stage.after if which == OWN}
        for bringer in {self._has[rank] for rank in ranks}:
            if bringer >= 0 and bringer not in waits:
                raise CoverageError(
                    f"stage {number} uses bucket {self._block} before stage {self._start + bringer} has brought it"
                )

    def _check_overwritten(
        self, position: int, stage: PatternStage, before: _Before, readers: Mapping[int, Set[int]]
    ) -> None:
        """The stage waits for all who read what is in the slots that it writes to."""
        waits = {waited for which, waited in stage.after if which == before.which}
        for rank, reading in readers.items():
            if before.ranks >> rank & 1 and not reading <= waits:
                raise CoverageError(
                    f"stage {self._start + position} overwrites a slot of rank {rank} while stages may still read it: "
                    f"those at {sorted(reading - waits)} of an earlier bucket"
                )

    def _note_readers(self, position: int, ranks: Set[int]) -> None:
        """The stage reads the bucket on ``ranks``, out of whichever slots they hold it in."""
        if self._fills & ranks:
            self._fill_readers.add(position)
        for rank in ranks:
            if rank in self._readers:
                self._readers[rank].add(position)
