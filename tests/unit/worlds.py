"""Imagined fleets for tests: manifests, topologies and transports, drawn at random or built by hand, and a simulator.

The simulator runs a plan without any of the library's own machinery: every rank is a handful of generators, memory is
an array in which every byte of the checkpoint has a number of its own, and chance decides who takes the next step.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from ckpt_transport import dtypes
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import (
    AUTO,
    EVERYTHING,
    ByteRangeSet,
    Extent,
    Manifest,
    PlacedTensor,
    Plan,
    RankInfo,
    RingUse,
    Role,
    Settings,
    Share,
    StageKind,
    TensorSpec,
    Topology,
    digest_of,
    plan,
)
from ckpt_transport.planning.broadcast_trees import BroadcastTree, direct_and_relayed
from ckpt_transport.planning.chain_broadcast import chain_broadcasts
from ckpt_transport.planning.values.plan import IN_PLACE, Leg
from ckpt_transport.transports.interface import FanOut, Reach, Traits

PLENTY = 1 << 40
"""A memory budget that never matters."""
HOST_MEMORY = frozenset({MemoryKind.PRIVATE, MemoryKind.SHARED})


def traits(
    *,
    reach: Reach = Reach.NETWORK,
    sends_from: frozenset[MemoryKind] = HOST_MEMORY,
    maps_memory: bool = False,
    fan_out: FanOut = FanOut.LINEAR,
    bandwidth: float = 1e9,
    latency: float = 1e-4,
) -> Traits:
    return Traits(
        reach=reach,
        sends_from=sends_from,
        maps_memory=maps_memory,
        fan_out=fan_out,
        bandwidth=bandwidth,
        latency=latency,
    )


WIRE = traits(fan_out=FanOut.TREE)
"""Collective, between hosts."""
WINDOW = traits(
    reach=Reach.HOST,
    sends_from=frozenset({MemoryKind.SHARED}),
    maps_memory=True,
    fan_out=FanOut.CONSTANT,
    bandwidth=4e10,
)
"""Mapped, within a host."""
READ = traits(sends_from=frozenset({MemoryKind.PRIVATE}), bandwidth=5e9)
"""One-sided, between hosts."""
POST = traits(reach=Reach.HOST, sends_from=frozenset(), bandwidth=3e9)
"""Messages within a host, out of slots only."""
SCREEN = traits(sends_from=frozenset({MemoryKind.SHARED}), maps_memory=True, fan_out=FanOut.CONSTANT, bandwidth=2e9)
"""Mapped, between hosts."""
INVENTED: Mapping[str, Traits] = {"post": POST, "read": READ, "screen": SCREEN, "window": WINDOW, "wire": WIRE}


# -- by hand -----------------------------------------------------------------------------------------------------------


def manifest(
    *sizes: Sequence[int], kind: MemoryKind = MemoryKind.SHARED, version: str = "step-2", start: int = 0
) -> Manifest:
    """One extent of U8 tensors of these sizes for every owner 0, 1, ...; they lie one behind the other."""
    extents: list[Extent] = []
    tensors: list[PlacedTensor] = []
    for owner, own in enumerate(sizes):
        offset = start
        for number, nbytes in enumerate(own):
            tensors.append(PlacedTensor(TensorSpec(f"{owner}.{number}", "U8", (nbytes,)), owner, offset, nbytes))
            offset += nbytes
        extents.append(Extent(owner, offset, kind))
    return Manifest(version, tuple(extents), tuple(tensors))


def topology(
    sources: Sequence[str],
    sinks: Sequence[str],
    *,
    budget: int = PLENTY,
    transports: Sequence[str] = tuple(INVENTED),
    whole_tensors: bool = False,
) -> Topology:
    """Sources and sinks on the hosts of these names."""
    roles = [(Role.SOURCE, host) for host in sources] + [(Role.SINK, host) for host in sinks]
    return Topology(
        tuple(
            RankInfo(rank, role, host, budget, tuple(transports), whole_tensors and role is Role.SINK)
            for rank, (role, host) in enumerate(roles)
        )
    )


@dataclass(frozen=True)
class World:
    """Everything a plan is made from."""

    manifest: Manifest
    topology: Topology
    traits: Mapping[str, Traits]
    settings: Settings

    def plan(self) -> Plan:
        return plan(self.manifest, self.topology, self.traits, self.settings)


def chained(transport: str = "wire+window", *, bucket_bytes: int = 1024, ring_depth: int = 2) -> World:
    """Two sources, one of them next to sinks; three hosts, so that there are near sinks, relays and what they serve."""
    return World(
        manifest([700, 0, 1500, 300, 900, 40], [1024, 2000, 5]),
        topology(["a", "d"], ["a", "a", "b", "b", "c", "c"]),
        INVENTED,
        Settings(transport=transport, bucket_bytes=bucket_bytes, ring_depth=ring_depth),
    )


def filled(transport: str = "post", *, ring_depth: int = 2) -> World:
    """One source that has to fill slots first, two sinks, five buckets."""
    return World(
        manifest([1000, 1000, 1000, 1000, 1000], kind=MemoryKind.PRIVATE),
        topology(["a"], ["a", "a"]),
        INVENTED,
        Settings(transport=transport, bucket_bytes=1024, ring_depth=ring_depth),
    )


# -- by chance ---------------------------------------------------------------------------------------------------------

SHAPES = st.one_of(
    st.just(()),
    st.tuples(st.integers(0, 4), st.integers(0, 64)),
    st.tuples(st.integers(0, 600)),
    st.sampled_from([(128,), (256,), (512,), (1024,), (255,), (257,)]),
)


@st.composite
def manifests(draw: st.DrawFn, owners: int) -> Manifest:
    """Every owner has up to three extents; tensors lie in them in any order, with gaps, as in a mapped file."""
    extents: list[Extent] = []
    tensors: list[PlacedTensor] = []
    for owner in range(owners):
        for _ in range(draw(st.integers(1, 3))):
            offset = draw(st.integers(0, 300))
            for _ in range(draw(st.integers(0, 5))):
                spec = TensorSpec(f"t{len(tensors)}", draw(st.sampled_from(["F32", "BF16", "I64", "U8"])), draw(SHAPES))
                align = dtypes.alignment(spec.dtype)
                offset = -(-(offset + draw(st.integers(0, 40))) // align) * align
                tensors.append(PlacedTensor(spec, len(extents), offset, spec.nbytes))
                offset += spec.nbytes
            extents.append(Extent(owner, offset + draw(st.integers(0, 9)), draw(st.sampled_from(sorted(HOST_MEMORY)))))
    if not tensors:
        tensors.append(PlacedTensor(TensorSpec("only", "U8", (0,)), 0, 0, 0))
    return Manifest("step-2", tuple(extents), tuple(draw(st.permutations(tensors))))


@st.composite
def worlds(draw: st.DrawFn, budgets: st.SearchStrategy[int] | None = None) -> World:
    """A fleet that at least one transport spans; ``budgets`` are drawn for every participant."""
    sources, sinks = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    hosts = st.sampled_from(["a", "b", "c"])
    whole = draw(st.booleans())
    participants = tuple(
        RankInfo(
            rank,
            Role.SOURCE if rank < sources else Role.SINK,
            draw(hosts),
            PLENTY if budgets is None else draw(budgets),
            tuple(INVENTED),
            whole_tensors=whole and rank >= sources and draw(st.booleans()),
        )
        for rank in range(sources + sinks)
    )
    drawn = draw(manifests(sources))
    everybody = draw(shared(Topology(participants), drawn))
    names = draw(st.sets(st.sampled_from(sorted(INVENTED)))) | {"wire"}
    speeds = st.sampled_from([1e8, 1e9, 1e10, 1e11])
    known = {
        name: traits(
            reach=INVENTED[name].reach,
            sends_from=INVENTED[name].sends_from,
            maps_memory=INVENTED[name].maps_memory,
            fan_out=INVENTED[name].fan_out,
            bandwidth=draw(speeds),
            latency=draw(st.sampled_from([0.0, 1e-5, 1e-3])),
        )
        for name in sorted(names)
    }
    settings = Settings(
        transport=draw(st.sampled_from([AUTO, *spanning(drawn, everybody, known)])),
        bucket_bytes=draw(st.sampled_from([1, 256, 500, 1024, 4096])),
        ring_depth=draw(st.integers(1, 4)),
        range_bytes=draw(st.sampled_from([1, 100, 100_000])),
    )
    return World(drawn, everybody, known, settings)


@st.composite
def shared(draw: st.DrawFn, fleet: Topology, drawn: Manifest) -> Topology:
    """The same fleet, in which some sinks need ranges of some tensors only."""
    shares = []
    for _ in range(draw(st.integers(0, 3))):
        runs = ByteRangeSet()
        for tensor in drawn.tensors:
            for _ in range(draw(st.integers(0, 2)) if tensor.nbytes else 0):
                start = draw(st.integers(0, tensor.nbytes - 1))
                runs.add(tensor.spec.name, start, draw(st.integers(1, tensor.nbytes - start)))
        shares.append(Share(digest_of(drawn.specs.values()), tuple(runs)))
    everything = st.just(EVERYTHING)
    chosen = st.one_of(everything, st.integers(0, len(shares) - 1)) if shares else everything
    participants = tuple(
        msgspec.structs.replace(member, share=draw(chosen)) if member.role is Role.SINK else member
        for member in fleet.participants
    )
    return Topology(participants, tuple(shares))


def spanning(manifest: Manifest, topology: Topology, known: Mapping[str, Traits]) -> list[str]:
    """The transports and chains that bring every owner's buckets to every sink."""
    every = "+".join(f"{name}-chain" for name in known)
    found = [
        {
            tree.name
            for tree in (
                *direct_and_relayed(owner, topology.sinks, topology, known),
                *chain_broadcasts(owner, manifest.owners, topology.sinks, topology, known, every),
            )
            if isinstance(tree, BroadcastTree)
        }
        for owner in manifest.owners
    ]
    return sorted(set.intersection(*found))


# -- the simulator -----------------------------------------------------------------------------------------------------

Memory = npt.NDArray[np.uint32]
NOTHING = 0
"""What memory holds that nobody has written, or that somebody is writing."""


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
    """Steps are generators: True is a step that was taken, False one that has to wait."""

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
        self.actors = self._cast()

    def run(self) -> None:
        actors = self.actors
        pace = [self.chance.choice([1, 1, 4, 30]) for _ in actors]
        while actors:
            chosen = self.chance.choices(range(len(actors)), pace)[0]
            if self._step(chosen, pace):
                continue
            if not any(self._step(index, pace) for index in self._anybody()):
                raise Deadlock(f"stages {sorted({stage for _, stage in self.left if self.left[_, stage]})} never end")
        for (sink, index), (bytes_, counts) in self.loaded.items():
            tensor = self.plan.manifest.tensors[index]
            wanted = self.extents[tensor.extent][tensor.offset : tensor.offset + tensor.nbytes]
            came = counts[: tensor.nbytes] == 1
            missed = counts[needed(self.plan, sink, tensor)] != 1
            if missed.any() or (counts > 1).any() or (bytes_ != wanted)[came].any():
                raise Corruption(f"tensor {tensor.spec.name} at rank {sink} is not what it should be")

    def _anybody(self) -> Iterator[int]:
        """All actors in a random order, drawn as far as it is asked for: most of the time somebody soon can go on."""
        order = list(range(len(self.actors)))
        for left in range(len(order), 0, -1):
            drawn = int(self.chance.random() * left)
            yield order[drawn]
            order[drawn] = order[left - 1]

    def _step(self, index: int, pace: list[int]) -> bool:
        try:
            return next(self.actors[index])
        except StopIteration:
            del self.actors[index], pace[index]
            return True

    def _cast(self) -> list[Iterator[bool]]:
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

    def _blocked(self, rank: int, stage: int) -> bool:
        return any(self.left.get((rank, earlier), 0) for earlier in self.plan.stages[stage].after)

    def _fill(self, rank: int, stages: Sequence[int]) -> Iterator[bool]:
        for number in stages:
            bucket = self.plan.buckets[self.plan.stages[number].bucket]
            while self._blocked(rank, number):
                yield False
            slot = self._slot(rank, RingUse.FILL, bucket.fill_slot, bucket.nbytes)
            slot[:] = NOTHING
            yield True
            for run in bucket.ranges:
                lies = self.extents[bucket.extent][run.offset : run.offset + run.nbytes]
                slot[run.bucket_offset : run.bucket_offset + run.nbytes] = lies
            self.left[rank, number] -= 1
            yield True

    def _post(self, rank: int, flights: Sequence[_Flight]) -> Iterator[bool]:
        for flight in flights:
            bucket_number = self.plan.stages[flight.stage].bucket
            bucket = self.plan.buckets[bucket_number]
            while self._blocked(rank, flight.stage):
                yield False
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
            yield True

    def _move(self, flight: _Flight, receiver: int) -> Iterator[bool]:
        while not flight.sent or receiver not in flight.posted:
            yield False
        if not self._maps(flight):
            into = self.views[receiver, self.plan.stages[flight.stage].bucket]
            for part in self._halves(len(into)):
                into[part] = self._sent_from(flight)[part]
                yield True
        flight.arrived.add(receiver)
        yield True

    def _poll(self, rank: int, flights: Sequence[_Flight]) -> Iterator[bool]:
        for flight in flights:
            while not self._ended(rank, flight):
                yield False
            self.left[rank, flight.stage] -= 1
            yield True

    def _ended(self, rank: int, flight: _Flight) -> bool:
        if rank != flight.leg.sender:
            return rank in flight.arrived
        return flight.sent and set(flight.leg.receivers) == (flight.released if self._maps(flight) else flight.arrived)

    def _apply(self, sink: int, stages: Sequence[int]) -> Iterator[bool]:
        for number in stages:
            bucket_number = self.plan.stages[number].bucket
            while self._blocked(sink, number):
                yield False
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
                    yield True
                if not len(bytes_):
                    counts += 1
            if (sink, bucket_number) in self.lent:
                self.lent[sink, bucket_number].released.add(sink)
            self.left[sink, number] -= 1
            yield True

    # -- where things are -----------------------------------------------------------------------------------------

    def _maps(self, flight: _Flight) -> bool:
        return self.plan.routes[flight.leg.route].maps_memory

    def _sent_from(self, flight: _Flight) -> Memory:
        bucket = self.plan.buckets[self.plan.stages[flight.stage].bucket]
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
