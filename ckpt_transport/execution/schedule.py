"""A schedule is one rank's part of a plan: which steps it does, in which order, and in which memory."""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ckpt_transport.planning import Bucket, Plan, Ring, RingUse, StageKind
from ckpt_transport.planning.values.plan import IN_PLACE, ExtentRange, Leg
from ckpt_transport.transports.interface import Span, Transfer


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


class RankSchedule:
    """Says what one rank does of a plan.

    Attributes:
        steps: in the order of the plan.
        applied: the buckets that are applied here.
        needs: for each stage done here, the stages done here that must be terminal first.
    """

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank = plan, rank
        legs = [[leg for leg in hop.legs if rank == leg.sender or rank in leg.receivers] for hop in plan.hops]
        applies = [rank in receiver_set for receiver_set in plan.receiver_sets]
        self.steps: list[RankStep] = []
        for number, stage in enumerate(plan.stages):
            if stage.kind is StageKind.TRANSFER:
                self.steps += [RankStep(number, stage.kind, stage.bucket, leg) for leg in legs[stage.hop]]
                continue
            bucket = plan.buckets[stage.bucket]
            if applies[bucket.receiver_set] if stage.kind is StageKind.APPLY else plan.owner(bucket) == rank:
                self.steps.append(RankStep(number, stage.kind, stage.bucket))
        self.applied = frozenset(step.bucket for step in self.steps if step.kind is StageKind.APPLY)
        here = {step.stage for step in self.steps}
        self.needs = {number: [earlier for earlier in plan.stages[number].after if earlier in here] for number in here}

    @property
    def routes(self) -> list[int]:
        """The routes this rank is a member of."""
        return [number for number, route in enumerate(self.plan.routes) if self.rank in route.ranks]

    @cached_property
    def numbers(self) -> dict[tuple[int, int], int]:
        """The numbers of the buckets that are applied here, by their first bytes (:attr:`Bucket.first`)."""
        return {self.plan.buckets[number].first: number for number in self.applied}

    @cached_property
    def lent(self) -> dict[int, list[Lent]]:
        """For each route of the plan, what its sender lends; a span's region is an index into this list."""
        lent: defaultdict[int, list[Lent]] = defaultdict(list)
        for bucket, leg in self._carried():
            memory = self._sent_from(bucket, leg)[0]
            if memory not in lent[leg.route]:
                lent[leg.route].append(memory)
        return lent

    def transfer(self, step: RankStep, seq: int) -> Transfer:
        """The request record of a transfer step, equal on every member of its route."""
        assert step.leg is not None
        bucket, leg = self.plan.buckets[step.bucket], step.leg
        memory, ranges = self._sent_from(bucket, leg)
        mapped = self.plan.routes[leg.route].maps_memory
        local = 0 if mapped else self._ring_offset(leg.receivers[0], RingUse.RECEIVE, bucket.slot)
        region = self.lent[leg.route].index(memory)
        spans = (Span(region, part.offset, local + part.bucket_offset, part.nbytes) for part in ranges)
        return Transfer(seq, leg.sender, leg.receivers, tuple(spans))

    def _carried(self) -> Iterator[tuple[Bucket, Leg]]:
        """Every leg with the first bucket of each extent it carries; the extent decides what a sender lends."""
        seen: set[tuple[int, int]] = set()
        for stage in self.plan.stages:
            bucket = self.plan.buckets[stage.bucket]
            if stage.kind is StageKind.TRANSFER and (stage.hop, bucket.extent) not in seen:
                seen.add((stage.hop, bucket.extent))
                for leg in self.plan.hops[stage.hop].legs:
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
