"""How a mailbox notices that a peer is gone, and that one which is busy is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import zmq

from ckpt_transport.control import Mailbox
from ckpt_transport.errors import PeerLostError
from tests.patience import with_enough_seconds
from tests.unit.control.notes import PATIENCE, Note, until

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
    def is_told_apart(seconds: float) -> bool:
        with Mailbox(timeout=seconds) as mailbox:
            return stays_until_killed(mailbox, busy_for=1.2 * seconds)

    with_enough_seconds(is_told_apart)


def stays_until_killed(mailbox: Mailbox, busy_for: float) -> bool:
    """Whether a peer is not lost while it is busy for so many seconds. It is when it is killed."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, mailbox.address], stdout=subprocess.PIPE, text=True)
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


def test_given_many_who_are_watched_one_after_the_other_then_each_new_one_hears_at_once_and_no_other(
    tmp_path: Path,
) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    listeners = []
    try:
        with Mailbox(interval=3600.0) as mailbox:
            for number in range(8):
                listener: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
                listener.rcvtimeo = int(PATIENCE * 1000)
                listener.bind(f"ipc://{tmp_path}/{number}")
                listeners.append(listener)
                mailbox.watch(f"ipc://{tmp_path}/{number}")
                listener.recv_multipart()
        beats = 1
        while listeners[0].poll(0):
            listeners[0].recv_multipart()
            beats += 1
        assert beats <= 2, "the first was told each time that another one came"
    finally:
        context.destroy(0)


def test_given_nothing_but_signs_of_life_then_nobody_who_waits_is_woken() -> None:
    with Mailbox(timeout=PATIENCE) as mailbox, Mailbox(interval=0.01) as peer:
        peer.watch(mailbox.address)
        assert not any(mailbox.pump(0.2) for _ in range(5))


def test_given_a_message_among_signs_of_life_then_who_waits_for_it_is_woken() -> None:
    with Mailbox(timeout=PATIENCE, types=[Note]) as mailbox, Mailbox(interval=0.01, types=[Note]) as peer:
        peer.watch(mailbox.address)
        peer.send(mailbox.address, Note("alive"))
        assert mailbox.receive(PATIENCE) == (peer.address, Note("alive"))
