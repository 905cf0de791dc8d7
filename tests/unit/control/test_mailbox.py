"""Mailboxes: who can talk to one, what it answers to strangers, and how it notices that a peer is gone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from ckpt_transport.control import Mailbox, Message, addresses
from ckpt_transport.control.inbox import INBOX_BYTES, INBOX_MESSAGES, Inbox, Letter
from ckpt_transport.control.mailbox import MAX_PARTING
from ckpt_transport.control.messages import MAX_FRAME, MAX_REASON, PROTOCOL, Codec, Heartbeat, Refused
from ckpt_transport.control.security import Secret
from ckpt_transport.errors import ConfigError, ControlError, MessageError, PeerLostError
from tests.addresses import has_ipv6

PATIENCE = 60.0


class Note(Message, frozen=True):
    text: str


class Unknown(Message, frozen=True):
    """A message that the other side has never heard of."""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline


def next_note(mailbox: Mailbox) -> tuple[str, Message]:
    received = mailbox.receive(PATIENCE)
    assert received is not None
    return received


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with Mailbox(types=[Note]) as made:
        yield made


@pytest.fixture
def peer() -> Iterator[Mailbox]:
    with Mailbox(types=[Note]) as made:
        yield made


@pytest.fixture
def stranger() -> Iterator[zmq.Socket[bytes]]:
    """Another program's socket."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    dealer.rcvtimeo = int(PATIENCE * 1000)
    yield dealer
    context.destroy(0)


# -- messages


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
    for number in range(MAX_PARTING):
        mailbox.send_once(f"ipc:///nobody/{number}", Note(""))
    with pytest.raises(ControlError, match="too many strangers"):
        mailbox.send_once("ipc:///nobody/else", Note(""))


def test_given_a_note_to_somebody_unknown_then_it_arrives_and_the_connection_is_closed(
    mailbox: Mailbox, peer: Mailbox
) -> None:
    mailbox.send_once(peer.address, Note("once"))
    assert next_note(peer) == (mailbox.address, Note("once"))
    assert not mailbox._dealers


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


def test_given_messages_and_an_immediate_close_then_they_still_arrive(mailbox: Mailbox) -> None:
    with Mailbox(types=[Note]) as brief:
        brief.send(mailbox.address, Note("last words"))
    assert next_note(mailbox) == (brief.address, Note("last words"))


# -- addresses


def test_given_an_address_where_somebody_listens_then_a_second_mailbox_is_refused(tmp_path: Path) -> None:
    for address in (f"ipc://{tmp_path}/taken", "tcp://127.0.0.1:0"):
        with Mailbox(address, [Note], insecure=True) as first:
            with pytest.raises(ControlError, match="cannot listen on"):
                Mailbox(first.address, insecure=True)
            with Mailbox(types=[Note], insecure=True) as peer:
                peer.send(first.address, Note("the first still listens"))
                assert next_note(first)[1] == Note("the first still listens")


def test_given_an_address_that_a_killed_process_left_then_it_can_be_had_again(tmp_path: Path) -> None:
    path = tmp_path / "left"
    leave = f"import socket; socket.socket(socket.AF_UNIX).bind({str(path)!r})"
    subprocess.run([sys.executable, "-c", leave], check=True)
    assert path.is_socket()
    with Mailbox(f"ipc://{path}", [Note]) as again, Mailbox(types=[Note]) as peer:
        peer.send(again.address, Note("hello"))
        assert next_note(again)[1] == Note("hello")


def test_given_an_address_where_a_file_lies_then_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "important"
    path.write_text("do not remove")
    with pytest.raises(ControlError, match="no socket"):
        Mailbox(f"ipc://{path}")
    assert path.read_text() == "do not remove"


def test_given_a_directory_that_is_not_there_then_the_error_names_the_address(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"cannot listen on ipc://.*/missing/a"):
        Mailbox(f"ipc://{tmp_path}/missing/a")


@pytest.mark.parametrize("address", ["tcp://10.0.0.5:0", "tcp://engine-7:5555", "tcp://0.0.0.0:0"])
def test_given_an_address_that_others_reach_then_it_is_refused_without_a_secret(address: str) -> None:
    for insecure in (False, True):
        with pytest.raises(ConfigError, match=r"secret_file|every interface"):
            Mailbox(address, insecure=insecure)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "tcp://127.8.9.1:0", "tcp://[::1]:0", "tcp://localhost:0"])
def test_given_an_address_that_others_of_this_host_reach_then_it_needs_a_secret_or_to_be_called_insecure(
    address: str,
) -> None:
    with pytest.raises(ConfigError, match=r"every user of this host.*insecure = true"):
        Mailbox(address)


def test_given_no_secret_then_nothing_is_sent_over_tcp_either(mailbox: Mailbox) -> None:
    for address in ("tcp://127.0.0.1:1", "tcp://10.0.0.5:1"):
        for send in (mailbox.send, mailbox.send_once):
            with pytest.raises(ConfigError, match="secret_file"):
                send(address, Note("in the clear"))


# -- other users


def hears_greeting_as_nobody(path: str) -> bool:
    """Whether a process of another user that connects to a UNIX socket is talked to."""
    child = os.fork()
    if child == 0:
        heard = 2
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.settimeout(PATIENCE)
                try:
                    stranger.connect(path)
                    heard = int(bool(stranger.recv(10)))
                except (PermissionError, ConnectionError):
                    heard = 0
        finally:
            os._exit(heard)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1)
    return bool(code)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_given_a_socket_in_a_folder_of_everybody_then_another_user_is_not_talked_to(open_folder: Path) -> None:
    path = str(open_folder / "sink")
    with Mailbox(f"ipc://{path}", [Note]) as mailbox, Mailbox(types=[Note]) as peer:
        assert os.stat(path).st_mode & 0o777 == 0o600
        assert not hears_greeting_as_nobody(path)
        os.chmod(path, 0o777)
        assert not hears_greeting_as_nobody(path), "whoever may connect is looked at"
        peer.send(mailbox.address, Note("the same user"))
        assert next_note(mailbox)[1] == Note("the same user")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_given_a_socket_of_another_user_then_it_is_not_talked_to(open_folder: Path) -> None:
    path = str(open_folder / "theirs")
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(path)
        theirs.listen()
        os.chown(path, 65534, 65534)
        child = os.fork()
        if child == 0:
            code = 2
            try:
                os.setresuid(1000, 1000, 1000)
                try:
                    addresses.check_owner(f"ipc://{path}")
                except ControlError:
                    code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        os.chown(path, 0, 0)
        addresses.check_owner(f"ipc://{path}")
        addresses.check_owner(f"ipc://{path}/nobody")


# -- the secret


SECRET = Secret.derive(b"correct horse battery staple")
OTHER = Secret.derive(b"incorrect horse battery staple")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
@pytest.mark.parametrize("peer_host", ["127.0.0.1", "[::1]"])
def test_given_one_secret_then_mailboxes_talk_over_tcp(host: str, peer_host: str) -> None:
    if "[::1]" in (host, peer_host) and not has_ipv6():
        pytest.skip("this host has no IPv6")
    with (
        Mailbox(f"tcp://{host}:0", [Note], secret=SECRET) as mailbox,
        Mailbox(f"tcp://{peer_host}:0", [Note], secret=SECRET) as peer,
    ):
        assert mailbox.address.startswith("tcp://[::1]:" if "::" in host else "tcp://127.0.0.1:")
        peer.send(mailbox.address, Note("hello"))
        assert next_note(mailbox) == (peer.address, Note("hello"))
        mailbox.send(peer.address, Note("answer"))
        assert next_note(peer) == (mailbox.address, Note("answer"))


def unlock(dealer: zmq.Socket[bytes], server: Secret, own: Secret) -> None:
    dealer.curve_serverkey = server.public
    dealer.curve_publickey = own.public
    dealer.curve_secretkey = own.private


@pytest.mark.parametrize("knows", ["nothing", "another secret", "the server's public key"])
def test_given_a_stranger_without_the_secret_then_it_never_gets_past_the_handshake(
    stranger: zmq.Socket[bytes], knows: str
) -> None:
    with Mailbox("tcp://127.0.0.1:0", [Note], secret=SECRET) as mailbox:
        if knows == "another secret":
            unlock(stranger, OTHER, OTHER)
        elif knows == "the server's public key":
            unlock(stranger, SECRET, OTHER)
        failures = (
            zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_DISCONNECTED
        )
        monitor = stranger.get_monitor_socket(failures | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        stranger.connect(mailbox.address)
        with suppress(zmq.Again):  # it may have been refused already
            stranger.send_multipart(Codec().frames("ipc:///x", Note("let me in")), zmq.NOBLOCK)
        assert monitor.poll(int(PATIENCE * 1000))
        assert recv_monitor_message(monitor)["event"] & failures
        with Mailbox("tcp://127.0.0.1:0", [Note], secret=SECRET) as peer:
            peer.send(mailbox.address, Note("I know it"))
            assert next_note(mailbox) == (peer.address, Note("I know it"))
        assert mailbox.receive(0) is None
        stranger.disable_monitor()
        monitor.close()


def test_given_a_secret_file_then_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with pytest.raises(ConfigError, match="No such file"):
        Secret.load(path)
    path.write_bytes(b"correct horse battery staple\n")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Secret.load(path)
    path.chmod(0o600)
    assert Secret.load(path) == SECRET
    path.write_bytes(b"too short\n")
    with pytest.raises(ConfigError, match="9 bytes; at least 16"):
        Secret.load(path)


def test_given_the_same_secret_then_the_keys_are_the_same_everywhere() -> None:
    assert Secret.derive(b"correct horse battery staple") == SECRET != OTHER
    assert SECRET.private.decode() not in repr(SECRET)


# -- liveness

CHILD = """
import sys, threading
from ckpt_transport.control import Mailbox
mailbox = Mailbox(interval=0.05)
mailbox.watch(sys.argv[1])
print(mailbox.address, flush=True)
while True:  # busy, and never looks into its mailbox
    sum(range(1000))
"""


def test_given_a_busy_peer_then_it_is_not_lost_until_it_is_killed() -> None:
    with Mailbox(timeout=3.0) as mailbox:
        child = subprocess.Popen([sys.executable, "-c", CHILD, mailbox.address], stdout=subprocess.PIPE, text=True)
        try:
            assert child.stdout is not None
            address = child.stdout.readline().strip()
            mailbox.watch(address)
            busy_until = time.monotonic() + 3.5
            while time.monotonic() < busy_until:
                mailbox.check_alive()
                mailbox.pump(0.05)
            os.kill(child.pid, signal.SIGKILL)
            until(lambda: mailbox.receive(0.05) is None and not alive(mailbox, address))
        finally:
            child.kill()
            child.communicate()
        mailbox.forget(address)
        mailbox.check_alive()


def alive(mailbox: Mailbox, address: str) -> bool:
    """Whether nobody watched is lost; only ``address`` may be."""
    try:
        mailbox.check_alive()
    except PeerLostError as lost:
        if address not in str(lost):
            raise
        return False
    return True


def test_given_a_peer_that_is_not_watched_then_its_silence_means_nothing(mailbox: Mailbox) -> None:
    mailbox.check_alive()
    mailbox.check_alive(["ipc:///nobody"])


def test_given_a_peer_that_was_silent_before_it_was_watched_then_it_gets_its_full_time(peer: Mailbox) -> None:
    with Mailbox(timeout=PATIENCE) as mailbox:
        mailbox.watch(peer.address)
        mailbox.check_alive()


def test_given_a_rank_that_did_not_look_for_long_then_beats_that_arrived_meanwhile_count(peer: Mailbox) -> None:
    """The deadline has passed, and the sign of life is waiting in the socket."""
    with Mailbox(timeout=0.0, types=[Note]) as mailbox:
        mailbox.watch(peer.address)
        peer.send(mailbox.address, Note("alive"))
        until(lambda: alive_at_last(mailbox, peer.address))


def alive_at_last(mailbox: Mailbox, address: str) -> bool:
    """Whether this look at the mailbox was the one that found the message."""
    try:
        mailbox.check_alive([address])
    except PeerLostError:
        return mailbox.receive(0) is not None
    return mailbox.receive(0) is not None


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
