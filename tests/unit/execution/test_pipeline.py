"""Plans run by real pipelines over real endpoints, every rank on a thread of its own."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import settings as checked

from ckpt_transport.control import Mailbox, RouteControl
from ckpt_transport.errors import TransferError, TransferTimeout, TransportError, UpdateAbortedError
from ckpt_transport.execution import (
    Apply,
    Digests,
    FillMemory,
    Fills,
    Ledger,
    Lent,
    LentKind,
    Pipeline,
    RankSchedule,
    RouteAttachment,
    StageEvent,
)
from ckpt_transport.execution.transfers import AHEAD
from ckpt_transport.memory import Buffer, Fence, MemoryKind, Segment
from ckpt_transport.planning import Bucket, Plan, RingUse, Settings, StageKind, verify
from ckpt_transport.planning.values.plan import IN_PLACE
from ckpt_transport.testing import LoopbackTransport
from ckpt_transport.transports.interface import Control, Endpoint, Group, Transfer, Transport
from ckpt_transport.transports.operations import Completion, MemoryRegion, Receipt
from ckpt_transport_gloo import GlooTransport
from ckpt_transport_shm.plugin import ShmEndpoint, ShmTransport
from tests.unit.devices import PATIENCE, Stream
from tests.unit.worlds import INVENTED, World, chained, manifest, needed, topology, worlds


class AnywhereTransport(ShmTransport):
    """Shared memory between hosts that are imagined."""

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        control.exchange(b"", timeout)
        return ShmEndpoint(group, control)


IN_PROCESS: Mapping[str, Transport] = {
    "post": LoopbackTransport(),
    "read": LoopbackTransport(),
    "screen": AnywhereTransport(),
    "window": ShmTransport(),
    "wire": LoopbackTransport(),
}

Hook = Callable[[int, Bucket], None]


def nothing(rank: int, bucket: Bucket) -> None:
    """An engine that always takes what it gets."""


@dataclass
class Outcome:
    """What became of one rank."""

    error: BaseException | None = None
    events: list[StageEvent] = field(default_factory=list)
    applied: list[Bucket] = field(default_factory=list)
    tensors: dict[int, torch.Tensor] = field(default_factory=dict)
    moved: int = 0


class Fleet:
    """Runs a plan on threads.

    Args:
        plan: what to do.
        transports: by the names the plan uses.
        on_apply: called before a sink takes a bucket.
        on_watch: called with the rank whenever a pipeline looks around.
    """

    anywhere = False
    """Whether buckets may be read on other threads than the one that runs the pipeline."""

    def __init__(
        self,
        plan: Plan,
        transports: Mapping[str, Transport] = IN_PROCESS,
        on_apply: Hook = nothing,
        on_watch: Callable[[int], None] = lambda rank: None,
    ) -> None:
        self.plan, self.transports, self.on_apply, self.on_watch = plan, transports, on_apply, on_watch
        self.size = len(plan.topology.participants)
        self.segments: list[Segment] = []
        self.extents = [self._extent(extent.nbytes, extent.kind) for extent in plan.manifest.extents]
        self.outcomes = {rank: Outcome() for rank in range(self.size)}
        self.described: dict[tuple[int, int], list[bytes]] = {}
        self.barrier = threading.Barrier(self.size)

    def _extent(self, nbytes: int, kind: MemoryKind) -> Buffer:
        if kind is MemoryKind.PRIVATE:
            buffer = Buffer.private(nbytes)
        else:
            self.segments.append(Segment.create(nbytes))
            buffer = Buffer(self.segments[-1].tensor()[:nbytes], self.segments[-1])
        buffer.tensor.random_(0, 256)
        return buffer

    def run(self) -> dict[int, Outcome]:
        mailboxes = [Mailbox() for _ in range(self.size)]
        threads = [threading.Thread(target=self._rank, args=(rank, mailboxes)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for mailbox in mailboxes:
            mailbox.close()
        for segment in self.segments:
            segment.close()
        return self.outcomes

    def _rank(self, rank: int, mailboxes: Sequence[Mailbox]) -> None:
        outcome, schedule, mailbox = self.outcomes[rank], RankSchedule(self.plan, rank), mailboxes[rank]
        attachments: dict[int, RouteAttachment] = {}
        deadline = time.monotonic() + PATIENCE

        def watch() -> None:
            self.on_watch(rank)
            if time.monotonic() > deadline:
                raise TransferTimeout("the test took too long")

        def progress(nbytes: int) -> None:
            outcome.moved += nbytes

        try:
            for number in schedule.routes:
                route = self.plan.routes[number]
                hosts = tuple(self.plan.topology.host(member) for member in route.ranks)
                group = Group(f"route {number}", route.ranks, rank, hosts)
                control = RouteControl(mailbox, group, {n: other.address for n, other in enumerate(mailboxes)})
                endpoint = self.transports[route.transport].open(group, control, PATIENCE)
                attachments[number] = RouteAttachment(endpoint)
            sources = self._register(rank, schedule, attachments)
            self.barrier.wait(PATIENCE)
            for number, attachment in attachments.items():
                sender = next(leg.sender for hop in self.plan.hops for leg in hop.legs if leg.route == number)
                attachment.endpoint.connect({sender: self.described[number, sender]})
            digests = self.digests(schedule, mailbox, mailboxes)
            sources.filled = digests.filled
            apply = self._apply(rank)

            def looked_at(bucket: Bucket, view: torch.Tensor) -> Fence | None:
                digests.look(bucket, view)
                return digests.read(bucket, view, apply(bucket, view))

            pump, wake, stream = mailbox.pump, mailbox.wake, self.apply_stream(rank)

            def compared() -> None:
                watch()
                digests.advance()

            fills = Fills(Ledger(schedule), attachments, sources, wake)
            pipeline = Pipeline(
                schedule, attachments, fills, looked_at, compared, pump, wake, progress, stream, digests
            )
            outcome.events = pipeline.run()
            digests.finish(compared, pump)
            self.barrier.wait(PATIENCE)
        except BaseException as error:
            outcome.error = error
            self.barrier.abort()
            for attachment in attachments.values():
                attachment.endpoint.abort(error)
        for attachment in attachments.values():
            attachment.endpoint.close()

    def _register(self, rank: int, schedule: RankSchedule, attachments: Mapping[int, RouteAttachment]) -> FillMemory:
        sends = {leg.route for hop in self.plan.hops for leg in hop.legs if leg.sender == rank}
        mapped_first = sorted(attachments, key=lambda n: (n not in sends, not self.plan.routes[n].maps_memory))
        rings: dict[RingUse, Buffer] = {}
        for use in RingUse:
            if (ring := self.plan.ring(rank, use)) is not None:
                rings[use] = attachments[mapped_first[0]].endpoint.allocate(ring.nbytes)
                rings[use].tensor.fill_(0xA5)
        for number, attachment in attachments.items():
            if number in sends:
                attachment.lent = [
                    attachment.endpoint.register(self._lent(lent, rings)) for lent in schedule.lent[number]
                ]
                self.described[number, rank] = [region.descriptor for region in attachment.lent]
            elif not self.plan.routes[number].maps_memory:
                attachment.landing = attachment.endpoint.register(rings[RingUse.RECEIVE])
        own = {
            number: self.extents[number]
            for number, extent in enumerate(self.plan.manifest.extents)
            if extent.owner == rank
        }
        return FillMemory(own, rings[RingUse.FILL].tensor if RingUse.FILL in rings else None)

    def _lent(self, lent: Lent, rings: Mapping[RingUse, Buffer]) -> Buffer:
        if lent.memory is LentKind.EXTENT:
            return self.extents[lent.extent]
        return rings[RingUse.FILL if lent.memory is LentKind.FILL else RingUse.RECEIVE]

    def apply_stream(self, rank: int) -> torch.cuda.Stream | None:
        """Where a rank's engine reads what it is given, if it does so later."""
        return None

    def digests(self, schedule: RankSchedule, mailbox: Mailbox, mailboxes: Sequence[Mailbox]) -> Digests:
        """What a rank does about digests."""
        return Digests()

    def _apply(self, rank: int) -> Apply:
        outcome = self.outcomes[rank]
        thread = threading.current_thread()

        def apply(bucket: Bucket, view: torch.Tensor) -> None:
            assert self.anywhere or threading.current_thread() is thread
            self.on_apply(rank, bucket)
            for piece in bucket.pieces:
                nbytes = self.plan.manifest.tensors[piece.tensor].nbytes
                into = outcome.tensors.setdefault(piece.tensor, torch.zeros(nbytes, dtype=torch.uint8))
                source = view[piece.bucket_offset : piece.bucket_offset + piece.nbytes]
                into[piece.tensor_offset : piece.tensor_offset + piece.nbytes] = source
            outcome.applied.append(bucket)

        return apply


def check(fleet: Fleet) -> None:
    """Every sink has every byte, in the order of the plan, and every stage was recorded."""
    plan, outcomes = fleet.plan, fleet.run()
    assert [outcome.error for outcome in outcomes.values()] == [None] * fleet.size
    for rank, outcome in outcomes.items():
        steps = RankSchedule(plan, rank).steps
        recorded = Counter((event.kind, event.bucket) for event in outcome.events)
        assert recorded == Counter((step.kind, step.bucket) for step in steps)
        assert all(event.start <= event.end and event.rank == rank for event in outcome.events)
        if rank in plan.topology.sinks:
            buckets = [plan.buckets[stage.bucket] for stage in plan.stages if stage.kind is StageKind.APPLY]
            wanted = [bucket for bucket in buckets if rank in plan.receiver_sets[bucket.receiver_set]]
            assert outcome.applied == wanted
            assert outcome.moved >= sum(bucket.nbytes for bucket in wanted)
            for index, tensor in enumerate(plan.manifest.tensors):
                lies = fleet.extents[tensor.extent].tensor[tensor.offset : tensor.offset + tensor.nbytes]
                came = outcome.tensors.get(index, torch.zeros_like(lies))
                asked = torch.from_numpy(needed(plan, rank, tensor)[: tensor.nbytes])
                assert torch.equal(came[asked], lies[asked]), f"{tensor.spec} at rank {rank}"


def small(transport: str, *, kind: MemoryKind = MemoryKind.SHARED, ring_depth: int = 2) -> Plan:
    """One source and two sinks on a host, seven buckets."""
    world = World(
        manifest([1000] * 7, kind=kind),
        topology(["a"], ["a", "a"]),
        INVENTED,
        Settings(transport=transport, bucket_bytes=1024, ring_depth=ring_depth),
    )
    return world.plan()


# -- to a good end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ring_depth", [1, 2, 4])
@pytest.mark.parametrize("transport", ["wire", "screen", "wire+window", "read+post"])
def test_given_two_sources_relays_and_a_small_ring_then_every_byte_arrives(transport: str, ring_depth: int) -> None:
    plan = chained(transport, ring_depth=ring_depth).plan()
    verify(plan)
    check(Fleet(plan))


@pytest.mark.parametrize("transport", ["wire", "window", "post"])
@pytest.mark.parametrize("kind", [MemoryKind.SHARED, MemoryKind.PRIVATE])
def test_given_any_kind_of_memory_then_it_is_filled_or_sent_from_where_it_lies(
    transport: str, kind: MemoryKind
) -> None:
    plan = small(transport, kind=kind)
    fills = any(bucket.fill_slot != IN_PLACE for bucket in plan.buckets)
    assert fills == (kind not in INVENTED[transport].sends_from)
    check(Fleet(plan))


@checked(max_examples=40, deadline=None)
@given(worlds())
def test_given_any_world_then_its_plan_runs_and_every_byte_arrives(world: World) -> None:
    plan = world.plan()
    check(Fleet(plan))


def test_given_a_collective_then_every_byte_arrives() -> None:
    """Two owners, so two groups; hosts are imagined, so gloo is told that there is one."""
    world = World(
        manifest([70_000, 0, 150_000, 300], [102_400, 5]),
        topology(["a", "a"], ["a", "a", "a"]),
        {"gloo": GlooTransport.traits},
        Settings(transport="gloo", bucket_bytes=64 << 10, ring_depth=2),
    )
    fleet = topology(["a", "a"], ["a", "a", "a"], transports=["gloo"])
    plan = World(world.manifest, fleet, world.traits, world.settings).plan()
    check(Fleet(plan, {"gloo": GlooTransport()}))


def test_given_slow_sinks_then_nothing_is_overwritten_before_they_have_read_it() -> None:
    """The first sink takes no bucket before the second has taken as many as the ring lets it."""
    plan = chained("wire+window", ring_depth=2).plan()
    ahead: dict[int, int] = dict.fromkeys(plan.topology.sinks, 0)
    moved = threading.Condition()

    def slow(rank: int, bucket: Bucket) -> None:
        with moved:
            ahead[rank] += 1
            moved.notify_all()
            if rank == 3:
                number = ahead[3]
                assert moved.wait_for(lambda: ahead[7] >= min(number + 1, len(plan.buckets)), PATIENCE)

    check(Fleet(plan, on_apply=slow))


class QueueingFleet(Fleet):
    """Its engines enqueue what they are given, and return."""

    anywhere = True

    def _apply(self, rank: int) -> Apply:
        apply, stream = super()._apply(rank), Stream()

        def enqueue(bucket: Bucket, view: torch.Tensor) -> Fence:
            return stream.put(lambda: apply(bucket, view))

        return enqueue


@pytest.mark.parametrize("transport", ["wire+window", "screen", "read+post"])
def test_given_engines_that_read_later_then_nothing_is_overwritten_before_their_fences(transport: str) -> None:
    check(QueueingFleet(chained(transport, ring_depth=2).plan()))


def test_given_a_fence_that_fails_then_its_rank_raises_that_and_collections_are_on_again() -> None:
    def picky(rank: int, bucket: Bucket) -> None:
        if rank == 5 and bucket.extent == 1:
            raise EngineError("the device is lost")

    outcomes = QueueingFleet(chained("wire", ring_depth=1).plan(), on_apply=picky).run()
    assert isinstance(outcomes[5].error, EngineError)
    assert gc.isenabled()


# -- to a bad end ----------------------------------------------------------------------------------------------------


class EngineError(Exception):
    """What an engine's loader raises."""


@pytest.mark.parametrize("transport", ["wire+window", "wire"])
def test_given_an_apply_that_raises_then_its_rank_raises_that_and_the_others_give_up(transport: str) -> None:
    def picky(rank: int, bucket: Bucket) -> None:
        if rank == 5 and bucket.extent == 1:
            raise EngineError("not this one")

    outcomes = Fleet(chained(transport, ring_depth=1).plan(), on_apply=picky).run()
    assert isinstance(outcomes[5].error, EngineError)
    involved = [rank for rank, outcome in outcomes.items() if outcome.error is not None]
    assert len(involved) == len(outcomes)
    others = [outcome.error for rank, outcome in outcomes.items() if rank != 5]
    assert all(isinstance(error, TransportError | threading.BrokenBarrierError) for error in others)
    assert not pumps()


@pytest.mark.parametrize("rank", [0, 3])
def test_given_a_watch_that_raises_then_the_run_ends_with_that(rank: int) -> None:
    def abort(watching: int) -> None:
        if watching == rank:
            raise UpdateAbortedError("somebody else failed")

    outcomes = Fleet(chained().plan(), on_watch=abort).run()
    assert isinstance(outcomes[rank].error, UpdateAbortedError)
    assert not pumps()


class _Never(Receipt):
    def done(self) -> bool:
        return False

    def views(self) -> Sequence[torch.Tensor]:
        raise AssertionError("nothing has arrived")

    def release(self) -> None:
        raise AssertionError("nothing has arrived")


class _Silent(Endpoint):
    """An endpoint through which nothing ever comes."""

    def _send(self, transfer: Transfer, regions: Sequence[MemoryRegion]) -> Completion:
        return _Never()

    def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
        return _Never()

    def _abort(self, reason: BaseException) -> None: ...

    def _close(self) -> None: ...


class _Broken(_Silent):
    """An endpoint on which nothing can be posted."""

    def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
        raise TransferError("the cable is out")


FEW_BYTES = World(manifest([1000]), topology(["a"], ["a"]), INVENTED, Settings(transport="wire"))


def lonely(endpoint: type[_Silent], idle: Callable[[float], None], world: World = FEW_BYTES) -> Pipeline:
    """The pipeline of a sink whose source does nothing."""
    with Mailbox() as mailbox:
        group = Group("r", (0, 1), 1, ("a", "a"))
        control = RouteControl(mailbox, group, {0: mailbox.address, 1: mailbox.address})
        attachment = RouteAttachment(endpoint(group, control))

    def apply(bucket: Bucket, view: torch.Tensor) -> None:
        raise AssertionError("nothing has arrived")

    schedule = RankSchedule(world.plan(), 1)
    fills = Fills(Ledger(schedule), {0: attachment}, FillMemory(), lambda: None)
    return Pipeline(schedule, {0: attachment}, fills, apply, lambda: None, idle, lambda: None, lambda nbytes: None)


def pumps() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ckpt-transport-pump")]


def test_given_a_pump_that_fails_then_the_caller_who_waits_for_buckets_gets_its_error() -> None:
    with pytest.raises(TransferError, match="the cable is out"):
        lonely(_Broken, time.sleep).run()
    assert not pumps()


def test_given_many_buckets_that_may_come_then_receives_are_posted_some_ahead_and_not_all() -> None:
    """So that the first one is applied while the last are still to be posted."""
    shared = manifest([256] * 100, kind=MemoryKind.SHARED)
    world = World(shared, topology(["a"], ["a"]), INVENTED, Settings(transport="window", bucket_bytes=256))
    assert len(world.plan().buckets) > AHEAD
    posted = []

    class Noting(_Silent):
        def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
            posted.append(transfer.seq)
            return super()._recv(transfer, region)

    def idle(seconds: float) -> None:
        raise EngineError("nothing else to do")

    with pytest.raises(EngineError):
        lonely(Noting, idle, world).run()
    assert posted == list(range(AHEAD))


def test_given_an_interrupt_while_the_caller_waits_then_the_pump_ends_too() -> None:
    """Nothing ever arrives, so only the interrupt can end this."""
    rounds = iter(range(1_000_000))
    main = threading.main_thread().ident
    assert main is not None

    def idle(seconds: float) -> None:
        if next(rounds) == 5:
            signal.pthread_kill(main, signal.SIGINT)
        time.sleep(seconds)

    with pytest.raises(KeyboardInterrupt):
        lonely(_Silent, idle).run()
    assert not pumps()


# -- programs --------------------------------------------------------------------------------------------------------


@checked(max_examples=60, deadline=None)
@given(worlds())
def test_given_any_plan_then_all_members_of_a_route_post_the_same_transfers_in_one_order(world: World) -> None:
    plan = world.plan()
    posted: dict[int, dict[int, list[Transfer]]] = {number: {} for number in range(len(plan.routes))}
    for rank in range(len(plan.topology.participants)):
        schedule = RankSchedule(plan, rank)
        for number in schedule.routes:
            steps = [step for step in schedule.steps if step.leg is not None and step.leg.route == number]
            posted[number][rank] = [schedule.transfer(step, seq) for seq, step in enumerate(steps)]
    for number, members in posted.items():
        assert set(members) == set(plan.routes[number].ranks)
        first, *others = members.values()
        assert all(other == first for other in others)


@checked(max_examples=60, deadline=None)
@given(worlds())
def test_given_any_plan_then_transfers_stay_inside_the_memory_they_name(world: World) -> None:
    plan = world.plan()
    for rank in range(len(plan.topology.participants)):
        schedule = RankSchedule(plan, rank)
        for step in schedule.steps:
            assert all(earlier < step.stage for earlier in schedule.needs[step.stage])
            if step.leg is None:
                continue
            for span in schedule.transfer(step, 0).spans:
                lent = schedule.lent[step.leg.route][span.region]
                assert 0 <= span.offset <= span.offset + span.nbytes <= size_of(plan, lent, step.leg.sender)
                if not plan.routes[step.leg.route].maps_memory:
                    for receiver in step.leg.receivers:
                        assert span.local + span.nbytes <= size_of(plan, Lent(LentKind.RECEIVE), receiver)


def size_of(plan: Plan, lent: Lent, rank: int) -> int:
    if lent.memory is LentKind.EXTENT:
        assert plan.manifest.extents[lent.extent].owner == rank
        return plan.manifest.extents[lent.extent].nbytes
    ring = plan.ring(rank, RingUse.FILL if lent.memory is LentKind.FILL else RingUse.RECEIVE)
    assert ring is not None
    return ring.nbytes
