"""One-sided reads: when they start; and calls of libraries that block."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

import msgspec
import pytest
from msgspec import structs

from ckpt_transport.errors import PeerLostError, TransferError
from ckpt_transport.memory import Buffer
from ckpt_transport.transports import Calls, OneSidedEndpoint, Poll, ReadSpan
from ckpt_transport.transports.interface import Control, Group, Span, Transfer
from ckpt_transport.transports.polled import Signal, SignalKind

DEADLINE = 150.0


class Wire(Control):
    """A control channel that a test feeds."""

    def __init__(self) -> None:
        self.heard: deque[tuple[int, bytes]] = deque()
        self.said: list[Signal] = []
        self.woken = threading.Event()

    def announce(self, transfer: Transfer) -> None:
        signal = Signal(SignalKind.READY, transfer.seq, transfer.digest)
        self.heard.append((transfer.sender, msgspec.msgpack.encode(signal)))

    def send(self, rank: int, payload: bytes) -> None:
        self.said.append(msgspec.msgpack.decode(payload, type=Signal))

    def receive(self) -> tuple[int, bytes] | None:
        return self.heard.popleft() if self.heard else None

    def wake(self) -> None:
        self.woken.set()

    def exchange(self, payload: bytes, timeout: float) -> dict[int, bytes]:
        raise NotImplementedError


class Reads(OneSidedEndpoint):
    """Reads that end when a test says so."""

    def __init__(self, group: Group, wire: Wire) -> None:
        super().__init__(group, wire)
        self.started: list[int] = []
        self.ended: set[int] = set()

    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        offset = spans[0].offset
        self.started.append(offset)
        return lambda: offset in self.ended

    def _shut(self) -> None:
        pass


@pytest.fixture
def wire() -> Wire:
    return Wire()


def transfers(count: int) -> list[Transfer]:
    return [Transfer(seq, 0, (1,), (Span(0, seq * 10, seq * 10, 10),)) for seq in range(count)]


def test_given_reads_that_were_announced_then_all_are_under_way_before_the_first_ends(wire: Wire) -> None:
    """Given three posted receives, when only the oldest is polled, then all that the sender announced are read."""
    endpoint = Reads(Group("route", (0, 1), 1, ("here", "here")), wire)
    endpoint.connect({0: [b"memory"]})
    region = endpoint.register(Buffer.private(100))
    asked = transfers(3)
    receipts = [endpoint.post_recv(transfer, region) for transfer in asked]

    wire.announce(asked[0])
    wire.announce(asked[1])
    assert not receipts[0].done()
    assert endpoint.started == [0, 10]

    wire.announce(asked[2])
    assert not receipts[0].done()
    assert endpoint.started == [0, 10, 20]

    endpoint.ended = {0, 10, 20}
    assert all(receipt.done() for receipt in receipts)
    assert [(signal.kind, signal.seq) for signal in wire.said] == [(SignalKind.ACK, seq) for seq in range(3)]


def test_given_reads_of_two_senders_then_they_do_not_wait_for_each_other(wire: Wire) -> None:
    """Given receives from two senders, when the later one's sender is ready first, then that is read."""
    endpoint = Reads(Group("route", (0, 1, 2), 1, ("here",) * 3), wire)
    endpoint.connect({0: [b"memory"], 2: [b"more"]})
    region = endpoint.register(Buffer.private(100))
    first = endpoint.post_recv(Transfer(0, 0, (1,), (Span(0, 0, 0, 10),)), region)
    other = Transfer(1, 2, (1,), (Span(0, 50, 50, 10),))
    second = endpoint.post_recv(other, region)

    wire.announce(other)
    endpoint.ended = {50}

    assert not first.done()
    assert endpoint.started == [50]
    assert second.done()


# -- libraries that block -------------------------------------------------------------------------------------------


def test_given_a_call_then_it_runs_elsewhere_and_its_end_wakes_the_pump(wire: Wire) -> None:
    calls, go = Calls("test-calls", wire), threading.Event()
    ran_on: list[str] = []

    def call() -> None:
        ran_on.append(threading.current_thread().name)
        assert go.wait(DEADLINE)

    ended = calls.start(call)
    assert not ended()
    assert not wire.woken.is_set()
    go.set()

    assert wire.woken.wait(DEADLINE)
    assert ended()
    assert ran_on[0].startswith("test-calls")
    calls.close()


def test_given_a_call_that_raises_then_its_poll_raises_that(wire: Wire) -> None:
    calls = Calls("test-calls", wire)

    def call() -> None:
        raise TransferError("no")

    ended = calls.start(call)
    assert wire.woken.wait(DEADLINE)
    with pytest.raises(TransferError, match="no"):
        ended()
    calls.close()


def test_given_a_call_that_runs_when_all_is_closed_then_it_is_waited_for_and_no_other_starts(wire: Wire) -> None:
    prepared: list[int] = []
    ran: list[str] = []
    calls, began = Calls("test-calls", wire, 1, lambda: prepared.append(1)), threading.Event()

    def call() -> None:
        began.set()
        time.sleep(0.05)
        ran.append("first")

    calls.start(call)
    calls.start(lambda: ran.append("second"))
    assert began.wait(DEADLINE)
    calls.close()
    calls.close()

    assert ran == ["first"]
    assert prepared == [1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test-calls")]


class Failing(Reads):
    """Its reads fail when a test says so."""

    fails = False

    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        def ended() -> bool:
            if self.fails:
                raise TransferError("connection reset")
            return False

        return ended


def test_given_a_read_that_fails_because_its_sender_gave_up_then_the_senders_reason_is_named() -> None:
    wire = Wire()
    endpoint = Failing(Group("a", (0, 1), 1, ("here", "here")), wire)
    endpoint.connect({0: [b""]})
    transfer = Transfer(0, 0, (1,), (Span(0, 0, 0, 256),))
    receipt = endpoint.post_recv(transfer, endpoint.register(Buffer.private(256)))
    wire.announce(transfer)
    assert not receipt.done()
    endpoint.fails = True
    wire.heard.append((0, msgspec.msgpack.encode(Signal(SignalKind.ABORT, reason="the engine has no such tensor"))))
    with pytest.raises(PeerLostError, match="the engine has no such tensor"):
        receipt.done()


def test_given_sends_that_are_posted_together_then_one_message_announces_them_to_each_receiver(wire: Wire) -> None:
    endpoint = Reads(Group("route", (0, 1, 2), 0, ("here",) * 3), wire)
    region = endpoint.register(Buffer.private(1000))
    sent = [Transfer(seq, 0, (1, 2), (Span(0, seq * 10, 0, 10),)) for seq in range(20)]
    completions = [endpoint.post_send(transfer, [region]) for transfer in sent]
    assert not completions[0].done()
    assert not completions[1].done()
    said = [[(each.seq, each.digest), *each.more] for each in wire.said]
    assert said == [[(transfer.seq, transfer.digest) for transfer in sent]] * 2


def test_given_one_announcement_of_many_then_reads_start_and_their_ends_are_said_together(wire: Wire) -> None:
    endpoint = Reads(Group("route", (0, 1), 1, ("here", "here")), wire)
    endpoint.connect({0: [b"memory"]})
    region = endpoint.register(Buffer.private(1000))
    asked = [structs.replace(transfer, reused=False) for transfer in transfers(40)]
    receipts = [endpoint.post_recv(transfer, region) for transfer in asked]
    first, *rest = asked
    more = tuple((transfer.seq, transfer.digest) for transfer in rest)
    announced = Signal(SignalKind.READY, first.seq, first.digest, more=more)
    wire.heard.append((0, msgspec.msgpack.encode(announced)))
    assert not receipts[0].done()
    assert len(endpoint.started) == 40
    endpoint.ended = set(endpoint.started)
    assert all(receipt.done() for receipt in receipts)
    assert [(each.kind, each.seq) for each in wire.said] == [(SignalKind.ACK_UP_TO, seq) for seq in range(1, 40, 2)]


def test_given_one_announcement_of_which_a_later_record_differs_then_that_receive_fails(wire: Wire) -> None:
    endpoint = Reads(Group("route", (0, 1), 1, ("here", "here")), wire)
    endpoint.connect({0: [b"memory"]})
    region = endpoint.register(Buffer.private(1000))
    first, second = transfers(2)
    receipts = [endpoint.post_recv(transfer, region) for transfer in (first, second)]
    announced = Signal(SignalKind.READY, first.seq, first.digest, more=((second.seq, second.digest + 1),))
    wire.heard.append((0, msgspec.msgpack.encode(announced)))
    endpoint.ended = {0, 10}
    with pytest.raises(TransferError, match="holds another record of transfer 1"):
        receipts[0].done()
    assert endpoint.started == [0]


def test_given_an_end_that_is_said_of_many_then_one_among_them_that_was_never_asked_for_fails_it(wire: Wire) -> None:
    endpoint = Reads(Group("route", (0, 1), 1, ("here", "here")), wire)
    endpoint.connect({0: [b"memory"]})
    region = endpoint.register(Buffer.private(1000))
    first, *rest = (structs.replace(transfer, reused=False) for transfer in transfers(40))
    receipt = endpoint.post_recv(first, region)
    more = tuple((transfer.seq, transfer.digest) for transfer in rest)
    announced = Signal(SignalKind.READY, first.seq, first.digest, more=more)
    wire.heard.append((0, msgspec.msgpack.encode(announced)))
    assert not receipt.done()
    later = [endpoint.post_recv(transfer, region) for transfer in rest if transfer.seq != 5]
    endpoint.ended = set(range(0, 400, 10))
    with pytest.raises(TransferError, match="sends transfer 5 to this rank, which does not expect it"):
        assert all(each.done() for each in (receipt, *later))
    assert not [each for each in wire.said if each.kind is SignalKind.ACK_UP_TO]
