"""How a mailbox notices that a peer is gone, and that one which is busy is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import zmq

from ckpt_transport.control import Mailbox
from ckpt_transport.control.messages import ALIVE
from ckpt_transport.control.touches import Touch, last_touch
from ckpt_transport.errors import PeerLostError
from tests.patience import with_enough_seconds
from tests.unit.control.notes import PATIENCE, Note, until

UNIX_SOCKET, TCP = "", "tcp://127.0.0.1:0"
CHILD = """
import sys, threading
from ckpt_transport.control import Mailbox
mailbox = Mailbox(sys.argv[2], interval=0.05, insecure=True)
mailbox.watch(sys.argv[1])
print(mailbox.address, flush=True)
while True:  # busy, and never looks into its mailbox
    sum(range(1000))
"""


@pytest.mark.parametrize("place", [UNIX_SOCKET, TCP])
def test_given_a_busy_peer_then_it_is_not_lost_until_it_is_killed(place: str) -> None:
    def is_told_apart(seconds: float) -> bool:
        with Mailbox(place, timeout=seconds, insecure=True) as mailbox:
            return stays_until_killed(mailbox, place, busy_for=1.2 * seconds)

    with_enough_seconds(is_told_apart)


def stays_until_killed(mailbox: Mailbox, place: str, busy_for: float) -> bool:
    """Whether a peer is not lost while it is busy for so many seconds. It is when it is killed."""
    command = [sys.executable, "-c", CHILD, mailbox.address, place]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        address = child.stdout.readline().strip()
        mailbox.watch(address)
        busy_until = time.monotonic() + busy_for
        while time.monotonic() < busy_until:
            if not alive(mailbox, address):
                return False
            mailbox.pump(0.05)
        os.kill(child.pid, signal.SIGKILL)
        until(lambda: mailbox.receive(0.05) is None and not alive(mailbox, address))
    finally:
        child.kill()
        child.communicate()
    mailbox.forget(address)
    mailbox.check_alive()
    return True


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


def test_given_many_who_are_watched_one_after_the_other_then_each_new_one_hears_at_once_and_no_other() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    listeners = []
    try:
        with Mailbox(interval=3600.0, insecure=True) as mailbox:
            for _ in range(8):
                listener = listening(context, "tcp://127.0.0.1:*")
                listeners.append(listener)
                mailbox.watch(listener.getsockopt_string(zmq.LAST_ENDPOINT))
                listener.recv_multipart()
        beats = 1
        while listeners[0].poll(0):
            listeners[0].recv_multipart()
            beats += 1
        assert beats <= 2, "the first was told each time that another one came"
    finally:
        context.destroy(0)


def listening(context: zmq.Context[zmq.Socket[bytes]], place: str) -> zmq.Socket[bytes]:
    """A socket that stands for somebody who is watched, and sees what is sent there."""
    listener: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    listener.rcvtimeo = int(PATIENCE * 1000)
    listener.bind(place)
    return listener


@pytest.mark.parametrize("place", [UNIX_SOCKET, TCP])
def test_given_nothing_but_signs_of_life_then_nobody_who_waits_is_woken(place: str) -> None:
    with (
        Mailbox(place, timeout=PATIENCE, insecure=True) as mailbox,
        Mailbox(place, interval=0.01, insecure=True) as peer,
    ):
        peer.watch(mailbox.address)
        assert not any(mailbox.pump(0.2) for _ in range(5))


@pytest.mark.parametrize("place", [UNIX_SOCKET, TCP])
def test_given_a_message_among_signs_of_life_then_who_waits_for_it_is_woken(place: str) -> None:
    with (
        Mailbox(place, timeout=PATIENCE, types=[Note], insecure=True) as mailbox,
        Mailbox(place, interval=0.01, types=[Note], insecure=True) as peer,
    ):
        peer.watch(mailbox.address)
        peer.send(mailbox.address, Note("alive"))
        assert mailbox.receive(PATIENCE) == (peer.address, Note("alive"))


def test_given_two_at_unix_sockets_then_signs_of_life_are_seen_and_not_sent(tmp_path: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        listener = listening(context, f"ipc://{tmp_path}/watched")
        with Mailbox(f"ipc://{tmp_path}/here", interval=0.01, types=[Note]) as mailbox:
            mailbox.watch(f"ipc://{tmp_path}/watched")
            for _ in range(5):
                seen = last_touch(mailbox.address)
                until(partial(differs, mailbox.address, seen))
            mailbox.send(f"ipc://{tmp_path}/watched", Note("the first that is sent"))
            assert b"the first that is sent" in listener.recv_multipart()[-1]
    finally:
        context.destroy(0)


def differs(address: str, seen: Touch | None) -> bool:
    """Whether the file there was touched since that was seen."""
    return last_touch(address) != seen


def test_given_a_socket_whose_file_was_removed_then_signs_of_life_are_sent(tmp_path: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        listener = listening(context, f"ipc://{tmp_path}/watched")
        with Mailbox(f"ipc://{tmp_path}/here", interval=0.01) as mailbox:
            mailbox.watch(f"ipc://{tmp_path}/watched")
            (tmp_path / "here").unlink()
            assert listener.recv_multipart()[1].startswith(ALIVE)
    finally:
        context.destroy(0)


def test_given_a_clock_that_is_another_in_the_peers_container_then_its_touches_count_all_the_same(
    tmp_path: Path,
) -> None:
    path, timeout = tmp_path / "peer", 0.2
    path.touch()
    os.utime(path, ns=(0, 0))
    with Mailbox(timeout=timeout) as mailbox:
        mailbox.watch(f"ipc://{path}")
        for clock in (1.0, 2.0, 1e9):
            time.sleep(2 * timeout)
            os.utime(path, (clock, clock))
            mailbox.check_alive()
        until(lambda: not alive(mailbox, f"ipc://{path}"))


@pytest.mark.parametrize("replaced", [False, True])
def test_given_a_touched_socket_when_it_is_closed_then_its_file_is_gone_but_not_anothers(
    tmp_path: Path, replaced: bool
) -> None:
    path = tmp_path / "here"
    mailbox = Mailbox(f"ipc://{path}", interval=0.01)
    mailbox.watch(f"ipc://{tmp_path}/nobody")
    bound = path.stat().st_mtime_ns
    until(lambda: path.stat().st_mtime_ns != bound)
    if replaced:
        path.rename(tmp_path / "moved")
        path.touch()
    mailbox.close()
    assert path.exists() == replaced
