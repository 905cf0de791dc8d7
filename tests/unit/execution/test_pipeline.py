"""Plans run by real pipelines over real endpoints, every rank on a thread of its own."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import settings as checked

from ckpt_transport.control import Mailbox, RouteControl
from ckpt_transport.errors import TransferError, TransportError, UpdateAbortedError
from ckpt_transport.execution import (
    Apply,
    FillMemory,
    Fills,
    Ledger,
    Lent,
    LentKind,
    Pipeline,
    RankSchedule,
    RouteAttachment,
)
from ckpt_transport.execution.applies import QUIET_SECONDS, WATCH_SECONDS
from ckpt_transport.execution.transfers import AHEAD
from ckpt_transport.memory import Fence, MemoryKind, Runs
from ckpt_transport.planning import Bucket, Plan, RingUse, Settings, verify
from ckpt_transport.planning.values.plan import IN_PLACE
from ckpt_transport.transports.interface import Endpoint, Group, Transfer
from ckpt_transport.transports.mapped import MappedEndpoint
from ckpt_transport.transports.operations import Completion, MemoryRegion, Receipt
from ckpt_transport_gloo import GlooTransport
from tests.unit.devices import PATIENCE, Stream
from tests.unit.execution.fleets import (
    EngineError,
    Fleet,
    check,
    pumps,
    small,
)
from tests.unit.worlds import INVENTED, World, chained, manifest, topology, worlds

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

        def enqueue(bucket: Bucket, runs: Runs) -> Fence:
            return stream.put(lambda: apply(bucket, runs))

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


class _Mapped(_Silent):
    """One whose transfers end by messages."""

    poll_seconds = MappedEndpoint.poll_seconds


class _Broken(_Silent):
    """An endpoint on which nothing can be posted."""

    def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
        raise TransferError("the cable is out")


FEW_BYTES = World(manifest([1000]), topology(["a"], ["a"]), INVENTED, Settings(transport="wire"))


def lonely(
    endpoint: type[_Silent],
    idle: Callable[[float], bool],
    world: World = FEW_BYTES,
    watch: Callable[[], None] = lambda: None,
) -> Pipeline:
    """The pipeline of a sink whose source does nothing."""
    with Mailbox() as mailbox:
        group = Group("r", (0, 1), 1, ("a", "a"))
        control = RouteControl(mailbox, group, {0: mailbox.address, 1: mailbox.address})
        attachment = RouteAttachment(endpoint(group, control))

    def apply(bucket: Bucket, runs: Runs) -> None:
        raise AssertionError("nothing has arrived")

    schedule = RankSchedule(world.plan(), 1)
    fills = Fills(Ledger(schedule), {0: attachment}, FillMemory(), lambda: None)
    return Pipeline(schedule, {0: attachment}, fills, apply, watch, idle, lambda: None, lambda nbytes: None)


def nothing_comes(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def test_given_a_sink_to_which_nothing_comes_then_it_wakes_only_to_look_around() -> None:
    """And when a message comes it looks around soon, because that may end the update."""
    done: list[float | str] = []

    def idle(seconds: float) -> bool:
        done.append(seconds)
        if done.count(QUIET_SECONDS) == 4:
            return True
        if done.count(QUIET_SECONDS) > 4:
            raise EngineError("that was enough")
        return nothing_comes(seconds)

    with pytest.raises(EngineError):
        lonely(_Mapped, idle, watch=lambda: done.append("look")).run()
    first = done.index(QUIET_SECONDS)
    assert done[first : first + 7] == [QUIET_SECONDS, "look"] * 3 + [QUIET_SECONDS]
    assert done[first + 7] in (WATCH_SECONDS, "look")


def test_given_a_pump_that_fails_then_the_caller_who_waits_for_buckets_gets_its_error() -> None:
    with pytest.raises(TransferError, match="the cable is out"):
        lonely(_Broken, nothing_comes).run()
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

    def idle(seconds: float) -> bool:
        raise EngineError("nothing else to do")

    with pytest.raises(EngineError):
        lonely(Noting, idle, world).run()
    assert posted == list(range(AHEAD))


def test_given_an_interrupt_while_the_caller_waits_then_the_pump_ends_too() -> None:
    """Nothing ever arrives, so only the interrupt can end this."""
    rounds = iter(range(1_000_000))
    main = threading.main_thread().ident
    assert main is not None

    def idle(seconds: float) -> bool:
        if next(rounds) == 5:
            signal.pthread_kill(main, signal.SIGINT)
        return nothing_comes(seconds)

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
