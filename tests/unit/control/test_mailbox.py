"""What is said to mailboxes: what arrives, what strangers are told, and what is refused."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import msgspec
import pytest
import zmq

from ckpt_transport.control import Mailbox, Message
from ckpt_transport.control.inbox import INBOX_BYTES, INBOX_MESSAGES, Inbox, Letter
from ckpt_transport.control.mailbox import MAX_PARTING
from ckpt_transport.control.messages import MAX_FRAME, MAX_REASON, PROTOCOL, Codec, Heartbeat, Refused
from ckpt_transport.errors import ControlError, MessageError
from tests.unit.control.notes import PATIENCE, Note, next_note, until


class Unknown(Message, frozen=True):
    """A message that the other side has never heard of."""


def test_given_another_thread_that_receives_then_each_answers_what_it_has_received_itself(mailbox: Mailbox) -> None:
    """Given two who ask, when another thread drives the mailbox meanwhile, then each gets its own answer."""
    with Mailbox(types=[Note]) as first, Mailbox(types=[Note]) as second:
        first.send(mailbox.address, Note("first asks"))
        next_note(mailbox)

        def stand_in() -> None:
            second.send(mailbox.address, Note("second asks"))
            next_note(mailbox)
            mailbox.answer(Note("to the second"))

        other = threading.Thread(target=stand_in)
        other.start()
        other.join(PATIENCE)
        mailbox.answer(Note("to the first"))
        assert next_note(first)[1] == Note("to the first")
        assert next_note(second)[1] == Note("to the second")


def test_given_two_mailboxes_then_messages_arrive_in_order_with_the_address_to_answer(
    mailbox: Mailbox, peer: Mailbox
) -> None:
    for number in range(100):
        peer.send(mailbox.address, Note(str(number)))
    assert [next_note(mailbox) for _ in range(100)] == [(peer.address, Note(str(number))) for number in range(100)]
    mailbox.send(peer.address, Note("answer"))
    assert next_note(peer) == (mailbox.address, Note("answer"))
    assert mailbox.receive(0) is None


def test_given_a_message_of_a_type_the_receiver_does_not_know_then_the_sender_is_told(mailbox: Mailbox) -> None:
    with Mailbox(types=[Unknown]) as newer:
        newer.send(mailbox.address, Unknown())
        newer.send(mailbox.address, Heartbeat())
        until(lambda: mailbox.receive(0.01) is None and newer.receive(0.01) is not None)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b"GET / HTTP/1.1\r\n"], "another program"),
        ([b""], "another program"),
        ([PROTOCOL, b"ipc:///x", b"\xff"], "unreadable"),
        ([PROTOCOL, b"nowhere", msgspec.msgpack.encode({"type": "Note", "text": ""})], "not an address"),
        ([b"x"] * 50, "50 frames"),
    ],
)
def test_given_a_strangers_message_then_it_is_told_so_and_nobody_is_disturbed(
    mailbox: Mailbox, peer: Mailbox, stranger: zmq.Socket[bytes], frames: list[bytes], reason: str
) -> None:
    stranger.connect(mailbox.address)
    stranger.send_multipart(frames)
    peer.send(mailbox.address, Note("undisturbed"))
    assert next_note(mailbox) == (peer.address, Note("undisturbed"))
    until(lambda: mailbox.receive(0.01) is None and bool(stranger.poll(0)))
    sender, answer = Codec().parse(stranger.recv_multipart())
    assert sender == mailbox.address
    assert isinstance(answer, Refused)
    assert reason in answer.reason
    assert mailbox.receive(0) is None


@pytest.mark.parametrize("size", [10 * MAX_REASON, MAX_FRAME // 2])
def test_given_a_huge_address_then_the_refusal_is_short(
    mailbox: Mailbox, stranger: zmq.Socket[bytes], size: int
) -> None:
    stranger.connect(mailbox.address)
    stranger.send_multipart([PROTOCOL, b"tcp://" + b"a" * size, msgspec.msgpack.encode({"type": "Note", "text": ""})])
    until(lambda: mailbox.receive(0.01) is None and bool(stranger.poll(0)))
    assert len(stranger.recv_multipart()[2]) < 2 * MAX_REASON


def test_given_a_frame_that_is_too_large_then_its_connection_ends_and_nobody_else_notices(
    mailbox: Mailbox, peer: Mailbox, stranger: zmq.Socket[bytes]
) -> None:
    monitor = stranger.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    stranger.connect(mailbox.address)
    stranger.send_multipart([PROTOCOL, b"ipc:///x", bytes(MAX_FRAME + 1)])
    assert monitor.poll(int(PATIENCE * 1000))
    peer.send(mailbox.address, Note("undisturbed"))
    assert next_note(mailbox) == (peer.address, Note("undisturbed"))
    with pytest.raises(MessageError, match=f"{MAX_FRAME} is the most"):
        peer.send(mailbox.address, Note("x" * (MAX_FRAME + 1)))
    stranger.disable_monitor()
    monitor.close()


def test_given_a_question_then_it_is_answered_on_its_connection_and_the_asker_is_forgotten(mailbox: Mailbox) -> None:
    """However many ask, wherever they say they are."""
    open_before = len(os.listdir("/proc/self/fd"))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    asker: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    asker.connect(mailbox.address)
    for number in range(1500):
        asker.send_multipart(Codec([Note]).frames(f"ipc:///nobody/{number}", Note(str(number))))
    for number in range(1500):
        assert next_note(mailbox) == (f"ipc:///nobody/{number}", Note(str(number)))
        mailbox.answer(Note("answer"))
        assert asker.poll(int(PATIENCE * 1000))
        assert Codec([Note]).parse(asker.recv_multipart()) == (mailbox.address, Note("answer"))
    context.destroy(0)
    assert len(os.listdir("/proc/self/fd")) < open_before + 20


def test_given_a_refusal_then_it_counts_only_on_our_own_connection_and_is_not_answered(
    mailbox: Mailbox, peer: Mailbox
) -> None:
    peer.send(mailbox.address, Refused("forged"))
    peer.send(mailbox.address, Note("real"))
    assert next_note(mailbox) == (peer.address, Note("real"))
    mailbox.refuse("no", "this")
    assert next_note(peer) == (mailbox.address, Refused("no", "this"))
    peer.refuse("no, you")
    assert mailbox.receive(0.2) is None
    assert peer.receive(0) is None


def test_given_many_strangers_then_so_many_connections_to_them_are_open_and_no_more(mailbox: Mailbox) -> None:
    """A slow machine may get further: the first are closed meanwhile."""
    sent: list[int] = []

    def send_to_strangers() -> None:
        for number in range(100 * MAX_PARTING):
            mailbox.send_once(f"ipc:///nobody/{number}", Note(""))
            sent.append(number)

    with pytest.raises(ControlError, match="too many strangers"):
        send_to_strangers()
    assert len(sent) >= MAX_PARTING


def test_given_a_note_to_somebody_unknown_then_it_arrives_and_the_connection_is_closed(
    mailbox: Mailbox, peer: Mailbox
) -> None:
    mailbox.send_once(peer.address, Note("once"))
    assert next_note(peer) == (mailbox.address, Note("once"))
    assert not mailbox._sockets.connections


def test_given_more_messages_than_anybody_reads_then_the_rest_is_refused() -> None:
    inbox = Inbox()
    letter = Letter("ipc:///a", Note(""), b"", INBOX_BYTES // 4)
    assert [inbox.add(letter) for _ in range(6)] == [True] * 4 + [False] * 2
    inbox.take()
    assert inbox.add(letter)
    small = Inbox()
    assert sum(small.add(Letter("ipc:///a", Note(""), b"", 1)) for _ in range(2 * INBOX_MESSAGES)) == INBOX_MESSAGES


def test_given_a_stranger_that_has_hung_up_then_its_message_is_dropped(mailbox: Mailbox, peer: Mailbox) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as gone:
        gone.connect(mailbox.address)
        gone.send(b"junk")
    peer.send(mailbox.address, Note("still here"))
    assert next_note(mailbox) == (peer.address, Note("still here"))


def test_given_a_wake_that_was_seen_in_passing_then_the_next_wait_ends_too(mailbox: Mailbox) -> None:
    """However often somebody has looked since: who woke meant the one that waits."""
    mailbox.wake()
    mailbox.pump(0)
    mailbox.pump(0)
    started = time.monotonic()
    mailbox.pump(PATIENCE)
    assert time.monotonic() < started + PATIENCE / 2


def test_given_a_message_that_was_filed_in_passing_then_the_next_wait_ends_and_says_so(
    mailbox: Mailbox, peer: Mailbox
) -> None:
    peer.send(mailbox.address, Note("news"))
    while not mailbox.pump(0):
        pass
    assert mailbox.pump(PATIENCE)
    assert next_note(mailbox) == (peer.address, Note("news"))


def test_given_a_wake_from_another_thread_then_the_wait_ends(mailbox: Mailbox) -> None:
    waker = threading.Thread(target=mailbox.wake)
    started = time.monotonic()
    waker.start()
    mailbox.pump(10 * PATIENCE)
    waker.join()
    assert time.monotonic() - started < 10 * PATIENCE
    mailbox.pump(0)


def test_given_a_closed_mailbox_then_closing_again_does_nothing_and_its_socket_is_gone() -> None:
    mailbox = Mailbox()
    path = Path(mailbox.address.removeprefix("ipc://"))
    assert path.is_socket()
    assert path.parent.stat().st_mode & 0o077 == 0
    mailbox.close()
    mailbox.close()
    assert not path.exists()


def test_given_a_mailbox_that_closes_when_another_opens_at_its_address_then_that_one_can_be_reached(
    mailbox: Mailbox, tmp_path: Path
) -> None:
    """Given that it still waits for somebody to take what was sent, and nobody listens at its address any more."""
    address = f"ipc://{tmp_path}/fixed"
    closing = Mailbox(address, [Note])
    closing.send(f"ipc://{tmp_path}/nobody", Note("waits"))
    end = threading.Thread(target=closing.close)
    end.start()
    opened = None
    while opened is None:
        with contextlib.suppress(ControlError):
            opened = Mailbox(address, [Note])
    with opened:
        end.join()
        mailbox.send(address, Note("to the new one"))
        assert next_note(opened) == (mailbox.address, Note("to the new one"))


def test_given_messages_and_an_immediate_close_then_they_still_arrive(mailbox: Mailbox) -> None:
    with Mailbox(types=[Note]) as brief:
        brief.send(mailbox.address, Note("last words"))
    assert next_note(mailbox) == (brief.address, Note("last words"))


def test_given_messages_that_were_kept_for_later_then_they_come_back_first_and_can_be_answered(
    mailbox: Mailbox, peer: Mailbox
) -> None:
    for text in ("first", "second", "third"):
        peer.send(mailbox.address, Note(text))
    for _ in range(2):
        next_note(mailbox)
        mailbox.keep_for_later()
    mailbox.bring_back()
    for text in ("first", "second", "third"):
        assert next_note(mailbox) == (peer.address, Note(text))
        mailbox.answer(Note(f"answer to {text}"))
        assert next_note(peer)[1] == Note(f"answer to {text}")
    assert mailbox.receive(0) is None
