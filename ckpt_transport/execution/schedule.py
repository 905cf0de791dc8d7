"""A schedule is one rank's part of a plan: which steps it does, in which order, and in which memory."""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from msgspec.structs import replace

from ckpt_transport.execution.samples import Samples
from ckpt_transport.memory import ExpectedRuns, Runs
from ckpt_transport.planning import Bucket, Plan, Ring, RingUse, StageKind
from ckpt_transport.planning.values.plan import IN_PLACE, ExtentRange, Leg
from ckpt_transport.planning.values.stages import OWN, Pattern, PatternStage
from ckpt_transport.transports.interface import Span, Transfer
from ckpt_transport.transports.transfer import SpanList


class LentKind(enum.StrEnum):
    """The kinds of memory a sender can lend on a route."""

    EXTENT = "extent"
    FILL = "fill"
    RECEIVE = "receive"


@dataclass(frozen=True, slots=True)
class Lent:
    """Memory a sender lends on a route: an extent, by its number in the manifest, or one of its rings."""

    memory: LentKind
    extent: int = -1


@dataclass(frozen=True, slots=True)
class RankStep:
    """A stage on this rank; a transfer stage is one step for each leg the rank is in."""

    stage: int
    kind: StageKind
    bucket: int
    leg: Leg | None = None


class _Scattered(NamedTuple):
    """How a bucket is carried on a leg.

    Attributes:
        spans: where it is read, and where it goes.
        reused: it is read from a slot.
        starts, sizes: where the bytes of each span are in the bucket, and how many.
    """

    spans: SpanList
    reused: bool
    starts: tuple[int, ...]
    sizes: Sequence[int]


class RankSchedule:
    """Says what one rank does of a plan.

    Attributes:
        steps: in the order of the plan.
        applied: the buckets that are applied here.
        needs: for each stage done here, the stages done here that must be terminal first.
    """

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank = plan, rank
        self._scattered: dict[tuple[int, Leg], _Scattered] = {}
        """Of each bucket on each leg: the same for all versions."""
        self.steps: list[RankStep] = []
        self.needs: dict[int, list[int]] = {}
        applies = [rank in receiver_set for receiver_set in plan.receiver_sets]
        fills = [extent.owner == rank for extent in plan.manifest.extents]
        parts: dict[tuple[int, bool, bool], list[tuple[int, PatternStage]]] = {}
        for number, block in enumerate(plan.stages.blocks):
            bucket = plan.buckets[block.bucket]
            key = block.pattern, applies[bucket.receiver_set], fills[bucket.extent]
            if key not in parts:
                parts[key] = self._part(plan.stages.pattern(number), *key[1:])
            if parts[key]:
                self._add(number, parts[key])
        self.applied = frozenset(step.bucket for step in self.steps if step.kind is StageKind.APPLY)

    def _part(self, pattern: Pattern, applies: bool, fills: bool) -> list[tuple[int, PatternStage]]:
        """What is done here of a pattern, with positions; of a bucket that is applied, or filled, here."""
        is_here = {StageKind.APPLY: applies, StageKind.FILL: fills}
        here = {
            position: stage
            for position, stage in enumerate(pattern)
            if (self._legs[stage.hop] if stage.kind is StageKind.TRANSFER else is_here[stage.kind])
        }
        return [
            (position, replace(stage, after=tuple(at for at in stage.after if at[0] != OWN or at[1] in here)))
            for position, stage in here.items()
        ]

    def _add(self, block: int, part: list[tuple[int, PatternStage]]) -> None:
        """Add what is done here of one bucket."""
        stages = self.plan.stages
        first, bucket = stages.start(block), stages.blocks[block].bucket
        for position, stage in part:
            legs: Sequence[Leg | None] = self._legs[stage.hop] if stage.kind is StageKind.TRANSFER else [None]
            self.steps += [RankStep(first + position, stage.kind, bucket, leg) for leg in legs]
            self.needs[first + position] = [
                earlier for earlier in stages.after(block, stage) if earlier >= first or earlier in self.needs
            ]

    @cached_property
    def _legs(self) -> list[list[Leg]]:
        """For each hop, the legs that this rank is in."""
        rank = self.rank
        return [[leg for leg in hop.legs if rank == leg.sender or rank in leg.receivers] for hop in self.plan.hops]

    @property
    def routes(self) -> list[int]:
        """The routes this rank is a member of."""
        return [number for number, route in enumerate(self.plan.routes) if self.rank in route.ranks]

    @cached_property
    def numbers(self) -> dict[tuple[int, int], int]:
        """The numbers of the buckets that are applied here, by their first bytes (:attr:`Bucket.first`)."""
        return {self.plan.buckets[number].first: number for number in self.applied}

    @cached_property
    def samples(self) -> Samples:
        """What is compared of the plan's buckets."""
        return Samples(self.plan)

    @cached_property
    def lent(self) -> dict[int, list[Lent]]:
        """For each route of this rank, what its sender lends; a span's region is an index into this list."""
        lent: defaultdict[int, list[Lent]] = defaultdict(list)
        for bucket, leg in self._carried():
            memory = self._sent_from(bucket, leg)[0]
            if memory not in lent[leg.route]:
                lent[leg.route].append(memory)
        return lent

    def transfer(self, step: RankStep, seq: int) -> Transfer:
        """The request record of a transfer step, equal on every member of its route."""
        assert step.leg is not None
        found = self._scattered_on(step.bucket, step.leg)
        return Transfer(seq, step.leg.sender, step.leg.receivers, found.spans, found.reused)

    def runs_received(self, step: RankStep) -> tuple[Sequence[int], Sequence[int]]:
        """Where the bytes of each span of a transfer step are in the bucket, and how many they are."""
        assert step.leg is not None
        found = self._scattered_on(step.bucket, step.leg)
        return found.starts, found.sizes

    @cached_property
    def expected(self) -> Sequence[tuple[int, Runs]]:
        """The buckets that are applied here, by number, and in which runs of memory each will be."""
        found = []
        for step in self.steps:
            leg = step.leg
            if leg is not None and self.rank in leg.receivers and step.bucket in self.applied:
                is_mapped = self.plan.routes[leg.route].maps_memory
                starts = self._scattered_on(step.bucket, leg).starts if is_mapped else (0,)
                found.append((step.bucket, ExpectedRuns(starts)))
        return found

    def _scattered_on(self, bucket: int, leg: Leg) -> _Scattered:
        key = bucket, leg
        if key not in self._scattered:
            self._scattered[key] = self._spans_of(self.plan.buckets[bucket], leg)
        return self._scattered[key]

    def _spans_of(self, bucket: Bucket, leg: Leg) -> _Scattered:
        memory, ranges = self._sent_from(bucket, leg)
        mapped = self.plan.routes[leg.route].maps_memory
        local = 0 if mapped else self._ring_offset(leg.receivers[0], RingUse.RECEIVE, bucket.slot)
        region = self.lent[leg.route].index(memory)
        spans = SpanList(Span(region, part.offset, local + part.bucket_offset, part.nbytes) for part in ranges)
        starts, sizes = tuple(part.bucket_offset for part in ranges), tuple(part.nbytes for part in ranges)
        return _Scattered(spans, memory.memory is not LentKind.EXTENT, starts, sizes)

    def _carried(self) -> Iterator[tuple[Bucket, Leg]]:
        """Every leg of this rank with the first bucket of each extent it carries: that decides what a sender lends."""
        stages, seen = self.plan.stages, set[tuple[int, int]]()
        for block in stages.blocks:
            bucket = self.plan.buckets[block.bucket]
            if (block.pattern, bucket.extent) in seen:
                continue
            seen.add((block.pattern, bucket.extent))
            for stage in stages.patterns[block.pattern]:
                if stage.kind is StageKind.TRANSFER:
                    for leg in self._legs[stage.hop]:
                        yield bucket, leg

    def _sent_from(self, bucket: Bucket, leg: Leg) -> tuple[Lent, tuple[ExtentRange, ...]]:
        """The memory a leg sends a bucket from, and where in it the bucket lies."""
        if leg.sender == self.plan.owner(bucket) and bucket.fill_slot == IN_PLACE:
            return Lent(LentKind.EXTENT, bucket.extent), self._in_extent(bucket)
        if leg.sender == self.plan.owner(bucket):
            memory, start = Lent(LentKind.FILL), self._ring_offset(leg.sender, RingUse.FILL, bucket.fill_slot)
        else:
            memory, start = Lent(LentKind.RECEIVE), self._ring_offset(leg.sender, RingUse.RECEIVE, bucket.slot)
        return memory, (ExtentRange(start, 0, bucket.nbytes),)

    def _in_extent(self, bucket: Bucket) -> tuple[ExtentRange, ...]:
        """The ranges in which a bucket is read where it lies; each is one run of memory."""
        if not self.plan.lies_apart(bucket):
            return bucket.ranges
        tensors = self.plan.manifest.tensors
        return tuple(
            ExtentRange(tensors[piece.tensor].offset + piece.tensor_offset, piece.bucket_offset, piece.nbytes)
            for piece in bucket.pieces
        )

    def _ring_offset(self, rank: int, use: RingUse, slot: int) -> int:
        ring = self._rings[rank, use]
        return ring.slot_bytes * slot

    @cached_property
    def _rings(self) -> dict[tuple[int, RingUse], Ring]:
        return {(ring.rank, ring.use): ring for ring in self.plan.rings}
