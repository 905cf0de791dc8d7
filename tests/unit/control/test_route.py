"""The control channel of one route."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from ckpt_transport.control import Mailbox, RouteControl
from ckpt_transport.control.inbox import EARLY_BYTES, ROUTE_BYTES, RouteInbox, RouteInboxes
from ckpt_transport.control.messages import RouteMessage
from ckpt_transport.control.route import NEWS_SECONDS, PLAIN
from ckpt_transport.errors import PeerLostError, TransferTimeout, UpdateAbortedError
from ckpt_transport.transports.interface import Group

PATIENCE = 60.0
RANKS = (3, 5, 8)


@pytest.fixture
def mailboxes() -> Iterator[dict[int, Mailbox]]:
    made = {rank: Mailbox() for rank in RANKS}
    yield made
    for mailbox in made.values():
        mailbox.close()


def control(mailboxes: dict[int, Mailbox], rank: int, route: str = "r") -> RouteControl:
    group = Group(route, RANKS, rank, ("here",) * len(RANKS))
    return RouteControl(mailboxes[rank], group, {rank: mailbox.address for rank, mailbox in mailboxes.items()})


def next_message(channel: RouteControl) -> tuple[int, bytes]:
    deadline = time.monotonic() + PATIENCE
    while (message := channel.receive()) is None:
        assert time.monotonic() < deadline
    return message


def test_given_plain_messages_around_exchanges_then_each_arrives_where_it_belongs_and_in_order(
    mailboxes: dict[int, Mailbox],
) -> None:
    def take_part(rank: int) -> tuple[list[dict[int, bytes]], dict[int, list[bytes]]]:
        channel = control(mailboxes, rank)
        peers = [peer for peer in RANKS if peer != rank]
        rounds = []
        for number in range(5):
            for peer in peers:
                channel.send(peer, b"before %d" % number)
            rounds.append(channel.exchange(b"%d of %d" % (number, rank), PATIENCE))
        heard: dict[int, list[bytes]] = {peer: [] for peer in peers}
        for _ in range(5 * len(peers)):
            sender, payload = next_message(channel)
            heard[sender].append(payload)
        assert channel.receive() is None
        return rounds, heard

    with ThreadPoolExecutor(len(RANKS)) as pool:
        results = list(pool.map(take_part, RANKS))
    for rank, (rounds, heard) in zip(RANKS, results, strict=True):
        assert rounds == [{peer: b"%d of %d" % (number, peer) for peer in RANKS} for number in range(5)]
        assert heard == {peer: [b"before %d" % number for number in range(5)] for peer in RANKS if peer != rank}


def test_given_a_member_that_does_not_turn_up_then_the_exchange_names_it(mailboxes: dict[int, Mailbox]) -> None:
    with pytest.raises(TransferTimeout, match=r"route r: ranks \[5, 8\] did not turn up"):
        control(mailboxes, 3).exchange(b"", 0.0)


def test_given_a_member_that_does_not_turn_up_then_those_that_did_name_it(mailboxes: dict[int, Mailbox]) -> None:
    def wait(rank: int) -> str:
        with pytest.raises(TransferTimeout) as late:
            control(mailboxes, rank).exchange(b"", 2 * NEWS_SECONDS)
        return str(late.value)

    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(wait, (3, 8)))
    assert all("route r: ranks [5] did not turn up" in each for each in said), said


def test_given_the_member_that_gathers_does_not_turn_up_then_the_exchange_names_it(
    mailboxes: dict[int, Mailbox],
) -> None:
    with pytest.raises(TransferTimeout, match=r"route r: ranks \[3\] did not turn up"):
        control(mailboxes, 5).exchange(b"", 0.0)


def test_given_an_exchange_then_only_the_member_that_gathers_is_talked_to(mailboxes: dict[int, Mailbox]) -> None:
    with ThreadPoolExecutor(len(RANKS)) as pool:
        list(pool.map(lambda rank: control(mailboxes, rank).exchange(b"here", PATIENCE), RANKS))
    assert [len(mailboxes[rank]._sockets.connections) for rank in RANKS] == [2, 1, 1]


def test_given_a_member_that_is_lost_then_whoever_waits_for_it_is_told(mailboxes: dict[int, Mailbox]) -> None:
    with Mailbox(timeout=0.01) as impatient:
        channel = control({**mailboxes, 3: impatient}, 3)
        impatient.watch(mailboxes[8].address)
        with pytest.raises(PeerLostError, match=mailboxes[8].address):
            channel.exchange(b"", PATIENCE)
        with pytest.raises(PeerLostError):
            next_message(channel)


def test_given_a_watch_that_raises_then_the_exchange_ends(mailboxes: dict[int, Mailbox]) -> None:
    def abort() -> None:
        raise UpdateAbortedError("somebody gave up")

    channel = control(mailboxes, 3)
    with pytest.raises(UpdateAbortedError), channel.watched_by(abort):
        channel.exchange(b"", PATIENCE)
    assert channel.receive() is None


def test_given_a_closed_route_then_its_messages_are_dropped_and_others_are_not(mailboxes: dict[int, Mailbox]) -> None:
    old, other = control(mailboxes, 5, "old"), control(mailboxes, 5, "other")
    old.send(3, b"arrived before it was closed")
    sender = control(mailboxes, 3, "old")
    assert next_message(sender) == (5, b"arrived before it was closed")
    sender.close()
    old.send(3, b"too late")
    other.send(3, b"in time")
    assert next_message(control(mailboxes, 3, "other")) == (5, b"in time")
    assert sender.receive() is None


def test_given_messages_for_a_route_that_is_not_open_yet_then_they_wait_for_it(mailboxes: dict[int, Mailbox]) -> None:
    control(mailboxes, 5).send(3, b"early")
    control(mailboxes, 5, "other").send(3, b"later")
    assert next_message(control(mailboxes, 3, "other")) == (5, b"later")
    assert next_message(control(mailboxes, 3)) == (5, b"early")


def test_given_a_stranger_then_its_messages_for_a_route_are_dropped(mailboxes: dict[int, Mailbox]) -> None:
    """Somebody who is no member; a member has the rank that its address has, whatever it says."""
    channel = control(mailboxes, 3)
    with Mailbox() as stranger:
        stranger.send(mailboxes[3].address, RouteMessage("r", PLAIN, b"forged"))
        mailboxes[8].send(mailboxes[3].address, RouteMessage("r", PLAIN, b"its own"))
        assert next_message(channel) == (8, b"its own")
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            assert channel.receive() is None


def test_given_more_for_a_route_than_anybody_reads_then_the_rest_is_dropped() -> None:
    inbox = RouteInbox({1: "ipc:///a"})
    message = RouteMessage("r", PLAIN, bytes(ROUTE_BYTES // 16))
    for _ in range(100):
        inbox.file("ipc:///a", message)
    assert len(inbox.messages) == 16
    for _ in range(1000):
        inbox.messages.popleft()
        inbox.file("ipc:///a", message)
        assert len(inbox.messages) == 16, "what was read makes room"


def test_given_messages_for_routes_that_nobody_opens_then_few_are_kept() -> None:
    inboxes = RouteInboxes()
    for number in range(5000):
        inboxes.file("ipc:///a", RouteMessage(f"r{number}", PLAIN, bytes(1000)))
    kept = [number for number in range(5000) if inboxes.open(f"r{number}", {1: "ipc:///a"})]
    assert kept == list(range(5000 - len(kept), 5000)), "the newest"
    assert 0 < len(kept) <= EARLY_BYTES // 1000
    for number in range(5000):
        inboxes.close(f"r{number}")
    assert not inboxes.open("r4999", {1: "ipc:///a"}), "what was filed is gone with its route"


def test_given_a_wake_then_the_member_that_waits_looks_again(mailboxes: dict[int, Mailbox]) -> None:
    channel = control(mailboxes, 3)
    looked: Future[None] = Future()

    def wait() -> None:
        mailboxes[3].pump(10 * PATIENCE)
        looked.set_result(None)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    channel.wake()
    looked.result(PATIENCE)
    thread.join()
