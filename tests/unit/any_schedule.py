"""Runs a plan under a schedule that chance decides, without any of the library's own machinery.

Every rank is a handful of generators, memory is an array in which every byte of the checkpoint has a number of its own,
and chance decides who takes the next step.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ckpt_transport.planning import PlacedTensor, Plan, RingUse, StageKind
from ckpt_transport.planning.values.plan import IN_PLACE, Leg

Memory = npt.NDArray[np.uint32]
NOTHING = 0
"""What memory holds that nobody has written, or that somebody is writing."""
ENDED = object()
"""Instead of what an actor waits for, when it has nothing more to do."""


class Corruption(AssertionError):
    """A sink read a byte that was not the one it was to read."""


class Deadlock(AssertionError):
    """No rank can take another step."""


@dataclass
class _Flight:
    """One leg of a transfer stage under way."""

    stage: int
    leg: Leg
    sent: bool = False
    posted: set[int] = field(default_factory=set)
    arrived: set[int] = field(default_factory=set)
    released: set[int] = field(default_factory=set)


def simulate(plan: Plan, seed: int) -> None:
    """Run ``plan`` under one random schedule.

    Raises:
        Corruption: a byte of a tensor did not reach a sink as it should, or not exactly once.
        Deadlock: the plan does not end.
    """
    _Simulation(plan, random.Random(seed)).run()


def needed(plan: Plan, sink: int, tensor: PlacedTensor) -> npt.NDArray[np.bool_]:
    """Which bytes of a tensor that sink must get; of a tensor without bytes, whether it must get that."""
    share = plan.topology.share_of(sink)
    needed = np.full(max(tensor.nbytes, 1), share is None or not tensor.nbytes)
    for name, start, nbytes in () if share is None else share.ranges:
        if name == tensor.spec.name:
            needed[max(start - tensor.start, 0) : max(start + nbytes - tensor.start, 0)] = True
    return needed


class _Simulation:
    """Actors are generators. One yields None where it has taken a step, and else what it waits for.

    It waits for a rank's end of a stage, or for something to happen to a flight, and is asked again when that has.
    """

    def __init__(self, plan: Plan, chance: random.Random) -> None:
        self.plan, self.chance = plan, chance
        self.extents: list[Memory] = []
        tag = NOTHING + 1
        for extent in plan.manifest.extents:
            self.extents.append(np.arange(tag, tag + extent.nbytes, dtype=np.uint32))
            tag += extent.nbytes
        self.slot_bytes = {(ring.rank, ring.use): ring.slot_bytes for ring in plan.rings}
        self.rings = {(ring.rank, ring.use): np.zeros(ring.nbytes, np.uint32) for ring in plan.rings}
        self.left: dict[tuple[int, int], int] = defaultdict(int)
        """How often a rank still has to end a stage; what is not in here does not concern it."""
        self.views: dict[tuple[int, int], Memory] = {}
        """Where a rank sees a bucket it received."""
        self.lent: dict[tuple[int, int], _Flight] = {}
        """The flight a rank must release a mapped bucket to."""
        self.loaded = {
            (sink, index): (np.zeros(tensor.nbytes, np.uint32), np.zeros(max(tensor.nbytes, 1), np.uint8))
            for sink in plan.topology.sinks
            for index, tensor in enumerate(plan.manifest.tensors)
        }
        self.stages = list(plan.stages)
        self.asleep: defaultdict[object, list[int]] = defaultdict(list)
        """Who waits, by what for; numbers of actors."""
        self.woken: list[int] = []
        self.actors = self._cast()

    def run(self) -> None:
        pace = [self.chance.choice([1, 1, 4, 30]) for _ in self.actors]
        ready = list(range(len(self.actors)))
        while ready:
            chosen = self.chance.choices(range(len(ready)), [pace[actor] for actor in ready])[0]
            waits_for = next(self.actors[ready[chosen]], ENDED)
            if waits_for is not None:
                actor, ready[chosen] = ready[chosen], ready[-1]
                ready.pop()
                if waits_for is not ENDED:
                    self.asleep[waits_for].append(actor)
            ready += self.woken
            self.woken.clear()
        if self.asleep:
            raise Deadlock(f"stages {sorted({stage for _, stage in self.left if self.left[_, stage]})} never end")
        for (sink, index), (bytes_, counts) in self.loaded.items():
            tensor = self.plan.manifest.tensors[index]
            wanted = self.extents[tensor.extent][tensor.offset : tensor.offset + tensor.nbytes]
            came = counts[: tensor.nbytes] == 1
            missed = counts[needed(self.plan, sink, tensor)] != 1
            if missed.any() or (counts > 1).any() or (bytes_ != wanted)[came].any():
                raise Corruption(f"tensor {tensor.spec.name} at rank {sink} is not what it should be")

    def _wake(self, key: object) -> None:
        self.woken += self.asleep.pop(key, ())

    def _ends(self, rank: int, stage: int) -> None:
        self.left[rank, stage] -= 1
        self._wake((rank, stage))

    def _cast(self) -> list[Iterator[object]]:
        fills: dict[int, list[int]] = defaultdict(list)
        posts: dict[tuple[int, int], list[_Flight]] = defaultdict(list)
        applies: dict[int, list[int]] = defaultdict(list)
        flights: list[_Flight] = []
        for number, stage in enumerate(self.plan.stages):
            if stage.kind is StageKind.FILL:
                owner = self.plan.owner(self.plan.buckets[stage.bucket])
                fills[owner].append(number)
                self.left[owner, number] += 1
            elif stage.kind is StageKind.APPLY:
                for sink in self.plan.receiver_sets[self.plan.buckets[stage.bucket].receiver_set]:
                    applies[sink].append(number)
                    self.left[sink, number] += 1
            else:
                for leg in self.plan.hops[stage.hop].legs:
                    flights.append(_Flight(number, leg))
                    for rank in (leg.sender, *leg.receivers):
                        posts[rank, leg.route].append(flights[-1])
                        self.left[rank, number] += 1
        return [
            *(self._fill(rank, stages) for rank, stages in fills.items()),
            *(self._post(rank, mine) for (rank, _), mine in posts.items()),
            *(self._poll(rank, mine) for (rank, _), mine in posts.items()),
            *(self._move(flight, receiver) for flight in flights for receiver in flight.leg.receivers),
            *(self._apply(sink, stages) for sink, stages in applies.items()),
        ]

    # -- what a rank does -----------------------------------------------------------------------------------------

    def _blocked(self, rank: int, stage: int) -> Iterator[object]:
        """What this rank has still to wait for before that stage, one after the other."""
        for earlier in self.stages[stage].after:
            while self.left.get((rank, earlier), 0):
                yield rank, earlier

    def _fill(self, rank: int, stages: Sequence[int]) -> Iterator[object]:
        for number in stages:
            bucket = self.plan.buckets[self.stages[number].bucket]
            yield from self._blocked(rank, number)
            slot = self._slot(rank, RingUse.FILL, bucket.fill_slot, bucket.nbytes)
            slot[:] = NOTHING
            yield None
            for run in bucket.ranges:
                lies = self.extents[bucket.extent][run.offset : run.offset + run.nbytes]
                slot[run.bucket_offset : run.bucket_offset + run.nbytes] = lies
            self._ends(rank, number)
            yield None

    def _post(self, rank: int, flights: Sequence[_Flight]) -> Iterator[object]:
        for flight in flights:
            bucket_number = self.stages[flight.stage].bucket
            bucket = self.plan.buckets[bucket_number]
            yield from self._blocked(rank, flight.stage)
            if rank == flight.leg.sender:
                flight.sent = True
            else:
                if self._maps(flight):
                    self.views[rank, bucket_number] = self._sent_from(flight)
                    self.lent[rank, bucket_number] = flight
                else:
                    slot = self._slot(rank, RingUse.RECEIVE, bucket.slot, bucket.nbytes)
                    slot[:] = NOTHING
                    self.views[rank, bucket_number] = slot
                flight.posted.add(rank)
            self._wake(id(flight))
            yield None

    def _move(self, flight: _Flight, receiver: int) -> Iterator[object]:
        while not flight.sent or receiver not in flight.posted:
            yield id(flight)
        if not self._maps(flight):
            into = self.views[receiver, self.stages[flight.stage].bucket]
            for part in self._halves(len(into)):
                into[part] = self._sent_from(flight)[part]
                yield None
        flight.arrived.add(receiver)
        self._wake(id(flight))
        yield None

    def _poll(self, rank: int, flights: Sequence[_Flight]) -> Iterator[object]:
        for flight in flights:
            while not self._ended(rank, flight):
                yield id(flight)
            self._ends(rank, flight.stage)
            yield None

    def _ended(self, rank: int, flight: _Flight) -> bool:
        if rank != flight.leg.sender:
            return rank in flight.arrived
        return flight.sent and set(flight.leg.receivers) == (flight.released if self._maps(flight) else flight.arrived)

    def _apply(self, sink: int, stages: Sequence[int]) -> Iterator[object]:
        for number in stages:
            bucket_number = self.stages[number].bucket
            yield from self._blocked(sink, number)
            if (sink, bucket_number) not in self.views:
                raise Corruption(f"rank {sink} applies bucket {bucket_number} without having received it")
            view = self.views[sink, bucket_number]
            for piece in self.plan.buckets[bucket_number].pieces:
                bytes_, counts = self.loaded[sink, piece.tensor]
                for part in self._halves(piece.nbytes):
                    source = view[piece.bucket_offset : piece.bucket_offset + piece.nbytes]
                    into = slice(piece.tensor_offset, piece.tensor_offset + piece.nbytes)
                    bytes_[into][part] = source[part]
                    counts[into][part] += 1
                    yield None
                if not len(bytes_):
                    counts += 1
            if (sink, bucket_number) in self.lent:
                lent = self.lent[sink, bucket_number]
                lent.released.add(sink)
                self._wake(id(lent))
            self._ends(sink, number)
            yield None

    # -- where things are -----------------------------------------------------------------------------------------

    def _maps(self, flight: _Flight) -> bool:
        return self.plan.routes[flight.leg.route].maps_memory

    def _sent_from(self, flight: _Flight) -> Memory:
        bucket = self.plan.buckets[self.stages[flight.stage].bucket]
        sender = flight.leg.sender
        if sender != self.plan.owner(bucket):
            return self._slot(sender, RingUse.RECEIVE, bucket.slot, bucket.nbytes)
        if bucket.fill_slot == IN_PLACE and not bucket.gathered:
            return self.extents[bucket.extent][bucket.offset : bucket.offset + bucket.nbytes]
        if bucket.fill_slot == IN_PLACE:
            packed = np.zeros(bucket.nbytes, np.uint32)
            for run in bucket.ranges:
                lies = self.extents[bucket.extent][run.offset : run.offset + run.nbytes]
                packed[run.bucket_offset : run.bucket_offset + run.nbytes] = lies
            return packed
        return self._slot(sender, RingUse.FILL, bucket.fill_slot, bucket.nbytes)

    def _slot(self, rank: int, use: RingUse, slot: int, nbytes: int) -> Memory:
        start = self.slot_bytes[rank, use] * slot
        return self.rings[rank, use][start : start + nbytes]

    def _halves(self, length: int) -> list[slice]:
        """Two parts, in either order: bytes do not move in one step, nor from first to last."""
        middle = length // 2
        parts = [slice(0, middle), slice(middle, length)]
        return parts if self.chance.random() < 0.5 else parts[::-1]
