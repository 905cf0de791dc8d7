"""Plans run by real pipelines over endpoints whose transfers a device orders: here one whose streams are threads."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ckpt_transport.errors import TransportError
from ckpt_transport.execution import Apply, Pipeline
from ckpt_transport.execution.applies import Applies
from ckpt_transport.execution.fills import Fills
from ckpt_transport.execution.transfers import Transfers
from ckpt_transport.memory import Fence, Runs
from ckpt_transport.planning import Bucket, verify
from ckpt_transport.testing import LoopbackTransport
from ckpt_transport.transports import CollectiveEndpoint, Poll
from ckpt_transport.transports.interface import Control, Endpoint, Group
from tests.unit.devices import PATIENCE, Mark, Stream
from tests.unit.execution.fleets import IN_PROCESS, EngineError, Fleet, check, pumps
from tests.unit.worlds import chained


class Meeting:
    """One broadcast: it moves bytes when every member's stream has come to it, and none may leave before."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = 0
        self._sent: torch.Tensor | None = None
        self._cancelled: set[int] = set()

    def send(self, tensor: torch.Tensor, rank: int, size: int) -> None:
        with self._changed:
            self._sent = tensor
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._taken == size - 1 or rank in self._cancelled, PATIENCE)

    def take(self, tensor: torch.Tensor, rank: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._sent is not None or rank in self._cancelled, PATIENCE)
            if self._sent is not None:
                tensor.copy_(self._sent)
            self._taken += 1
            self._changed.notify_all()

    def cancel(self, rank: int) -> None:
        """That member does not wait any longer; nobody else hears of it."""
        with self._changed:
            self._cancelled.add(rank)
            self._changed.notify_all()


class OrderedEndpoint(CollectiveEndpoint):
    """Broadcasts on a stream, and like NCCL's they end by themselves only when everybody takes part."""

    def __init__(self, group: Group, control: Control, meetings: dict[tuple[str, int], Meeting]) -> None:
        super().__init__(group, control)
        self.stream: Any = Stream()
        self._meetings = meetings
        self._joined: list[Meeting] = []
        self._last: Mark | None = None

    def _broadcast(self, tensor: torch.Tensor, root: int) -> Poll:
        meeting = self._meetings.setdefault((self.group.route, len(self._joined)), Meeting())  # one for all threads
        self._joined.append(meeting)
        rank, size = self.group.rank, self.group.size
        if root == rank:
            self._last = self.stream.put(lambda: meeting.send(tensor, rank, size))
        else:
            self._last = self.stream.put(lambda: meeting.take(tensor, rank))
        return self._last.query

    def _enqueued(self) -> Fence | None:
        return self._last

    def _interrupt(self) -> None:
        for meeting in self._joined:
            meeting.cancel(self.group.rank)

    def _shut(self) -> None:
        """Threads end with the test."""


class OrderedTransport(LoopbackTransport):
    """Makes them."""

    endpoint: type[OrderedEndpoint] = OrderedEndpoint

    def __init__(self) -> None:
        super().__init__()
        self._meetings: dict[tuple[str, int], Meeting] = {}

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        control.exchange(b"", timeout)
        return self.endpoint(group, control, self._meetings)


class StalledEndpoint(OrderedEndpoint):
    """Its broadcasts have no sender: as if that had died when it had said that it sends."""

    def _broadcast(self, tensor: torch.Tensor, root: int) -> Poll:
        return super()._broadcast(tensor, -1)


class StalledTransport(OrderedTransport):
    """Makes them."""

    endpoint = StalledEndpoint


class OrderedFleet(Fleet):
    """Its engines read what they are given on streams of their own."""

    anywhere = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._streams = [Stream() for _ in range(self.size)]

    def apply_stream(self, rank: int) -> Any:
        return self._streams[rank]

    def _apply(self, rank: int) -> Apply:
        apply, stream = super()._apply(rank), self._streams[rank]

        def enqueue(bucket: Bucket, runs: Runs) -> Fence:
            return stream.put(lambda: apply(bucket, runs))

        return enqueue


class Looking(OrderedFleet):
    """Engines whose loaders look at values, and so wait on the host for what is not there yet.

    Attributes:
        in_loaders: the ranks whose loaders have been called.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.in_loaders: set[int] = set()

    def _apply(self, rank: int) -> Apply:
        apply, stream = Fleet._apply(self, rank), self._streams[rank]

        def look(bucket: Bucket, runs: Runs) -> Fence:
            self.in_loaders.add(rank)
            stream.put(lambda: None).synchronize()
            apply(bucket, runs)
            return stream.put(lambda: None)

        return look


@pytest.mark.parametrize("ring_depth", [1, 2, 4])
@pytest.mark.parametrize("transport", ["wire", "wire+window", "wire-chain"])
def test_given_a_device_that_orders_then_nothing_is_read_too_early_or_overwritten_too_soon(
    transport: str, ring_depth: int
) -> None:
    """Also where only one of two transports of a relay has a stream: there the host waits."""
    plan = chained(transport, ring_depth=ring_depth).plan()
    verify(plan)
    check(OrderedFleet(plan, {**IN_PROCESS, "wire": OrderedTransport()}))


def test_given_an_engine_that_fails_while_others_wait_on_their_devices_then_all_of_them_end() -> None:
    def picky(rank: int, bucket: Bucket) -> None:
        if rank == 5 and bucket.extent == 1:
            raise EngineError("not this one")

    plan = chained("wire", ring_depth=1).plan()
    outcomes = Looking(plan, {**IN_PROCESS, "wire": OrderedTransport()}, on_apply=picky).run()
    assert isinstance(outcomes[5].error, EngineError)
    others = [outcome.error for rank, outcome in outcomes.items() if rank != 5]
    assert all(isinstance(error, TransportError | threading.BrokenBarrierError) for error in others)
    assert not pumps()


def test_given_a_sender_that_gives_up_while_loaders_wait_for_its_bytes_then_they_end_too() -> None:
    """The thread that waits in a loader is the one that drives transfers: somebody else must see that none come."""
    plan = chained("wire").plan()
    owner = plan.owner(plan.buckets[0])
    begun = time.monotonic()

    def give_up(rank: int) -> None:
        if rank == owner and fleet.in_loaders.issuperset(plan.topology.sinks):
            raise EngineError("enough")

    fleet = Looking(plan, {**IN_PROCESS, "wire": StalledTransport()}, on_watch=give_up)
    outcomes = fleet.run()
    assert time.monotonic() < begun + PATIENCE / 2
    assert isinstance(outcomes[owner].error, EngineError)
    assert all("gave up on route" in str(outcomes[rank].error) for rank in plan.topology.sinks)
    assert not pumps()


def test_given_an_interrupt_in_a_loader_that_was_let_go_then_it_is_still_an_interrupt() -> None:
    plan = chained("wire").plan()
    owner, victim = plan.owner(plan.buckets[0]), plan.topology.sinks[-1]

    def give_up(rank: int) -> None:
        if rank == owner and victim in fleet.in_loaders:
            raise EngineError("enough")

    class Interrupted(Looking):
        def _apply(self, rank: int) -> Apply:
            look = super()._apply(rank)

            def interrupted(bucket: Bucket, runs: Runs) -> Fence | None:
                try:
                    return look(bucket, runs)
                finally:
                    if rank == victim:
                        raise KeyboardInterrupt

            return interrupted

    fleet = Interrupted(plan, {**IN_PROCESS, "wire": StalledTransport()}, on_watch=give_up)
    outcomes = fleet.run()
    assert isinstance(outcomes[victim].error, KeyboardInterrupt)
    assert not pumps()


@pytest.fixture
def kept_before() -> Iterator[list[object]]:
    """What is alive of a run of an earlier test, which a report may keep. The collector does not run meanwhile."""
    gc.collect()
    gc.disable()
    yield parts_of_runs()
    gc.enable()


def parts_of_runs() -> list[object]:
    return [each for each in gc.get_objects() if issubclass(type(each), (Pipeline, Fills, Transfers, Applies))]


@pytest.mark.parametrize("fleet", [Fleet, OrderedFleet])
def test_given_a_run_that_is_over_then_it_lets_go_of_its_memory_without_the_garbage_collector(
    fleet: type[Fleet], kept_before: list[object]
) -> None:
    """What a trainer has lent may be gigabytes of a GPU."""
    check(fleet(chained("wire").plan(), {**IN_PROCESS, "wire": OrderedTransport()}))
    before = {id(each) for each in kept_before}
    assert not [each for each in parts_of_runs() if id(each) not in before]
