"""Whose sign of life a touched file is, and which file is touched."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import zmq

from ckpt_transport.control import Mailbox
from ckpt_transport.control.messages import ALIVE
from ckpt_transport.control.security import Secret
from ckpt_transport.control.touches import SocketFile, last_touch
from ckpt_transport.errors import PeerLostError
from tests.patience import with_enough_seconds
from tests.unit.control.notes import until
from tests.unit.control.test_liveness import listening

INTERVAL, TIMEOUT = 0.05, 0.5


def is_lost(mailbox: Mailbox, address: str) -> bool:
    mailbox.pump(INTERVAL)
    try:
        mailbox.check_alive([address])
    except PeerLostError:
        return True
    return False


def test_given_a_peer_that_has_parted_and_watches_nobody_then_it_touches_nothing_and_is_lost(tmp_path: Path) -> None:
    with (
        Mailbox(timeout=TIMEOUT) as mailbox,
        Mailbox(interval=INTERVAL) as peer,
    ):
        peer.watch(mailbox.address)
        mailbox.watch(peer.address)
        bound = last_touch(peer.address)
        until(lambda: last_touch(peer.address) != bound)
        peer.forget(mailbox.address)
        until(lambda: is_lost(mailbox, peer.address))
        parted = last_touch(peer.address)
        peer.watch(f"ipc://{tmp_path}/nobody")
        until(lambda: last_touch(peer.address) != parted)


def test_given_a_peer_that_has_died_when_another_one_takes_its_path_at_once_then_the_dead_one_is_lost(
    tmp_path: Path,
) -> None:
    path = f"ipc://{tmp_path}/fixed"
    with Mailbox(timeout=TIMEOUT) as mailbox, Mailbox() as another:
        with Mailbox(path, interval=INTERVAL) as peer:
            peer.watch(mailbox.address)
            mailbox.watch(path)
        with Mailbox(path, interval=INTERVAL) as newcomer:
            newcomer.watch(another.address)
            until(lambda: is_lost(mailbox, path))
            mailbox.watch(path)
            bound = last_touch(path)
            until(lambda: last_touch(path) != bound)
            mailbox.check_alive([path])


def test_given_a_file_system_that_gives_a_number_again_then_touches_of_the_next_socket_are_no_sign_of_life(
    tmp_path: Path,
) -> None:
    (tmp_path / "socket").touch()
    path = f"ipc://{tmp_path}/socket"
    with Mailbox(timeout=TIMEOUT) as mailbox:
        assert SocketFile(path).touch()
        mailbox.watch(path)
        following = SocketFile(path)
        until(lambda: following.touch() and is_lost(mailbox, path))


def test_given_a_peer_that_takes_another_secret_then_it_is_not_lost_though_its_file_is_another() -> None:
    def is_kept(seconds: float) -> bool:
        with (
            Mailbox(timeout=seconds) as mailbox,
            Mailbox(interval=INTERVAL, timeout=seconds) as peer,
        ):
            mailbox.watch(peer.address)
            peer.watch(mailbox.address)
            before = last_touch(peer.address)
            peer.use(Secret.derive(b"another horse battery staple"))
            after = last_touch(peer.address)
            assert before is not None
            assert after is not None
            assert (after.file, after.mark) != (before.file, before.mark)
            end = time.monotonic() + 3 * seconds
            while time.monotonic() < end:
                if is_lost(mailbox, peer.address):
                    return False
            return True

    with_enough_seconds(is_kept, seconds=1.0)


@pytest.mark.parametrize("what", ["a link", "a file"])
def test_given_something_else_at_a_sockets_path_then_it_is_not_touched_and_signs_of_life_are_sent(
    tmp_path: Path, what: str
) -> None:
    other, here = tmp_path / "other", tmp_path / "here"
    other.touch()
    before = other.stat().st_mtime_ns
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        listener = listening(context, f"ipc://{tmp_path}/watched")
        with Mailbox(f"ipc://{here}", interval=INTERVAL) as mailbox:
            mailbox.watch(f"ipc://{tmp_path}/watched")
            if what == "a link":
                here.rename(tmp_path / "moved")
                here.symlink_to(other)
            else:
                other.rename(here)
            for _ in range(3):
                assert listener.recv_multipart()[1].startswith(ALIVE)
        assert (other if what == "a link" else here).stat().st_mtime_ns == before
    finally:
        context.destroy(0)


def test_given_a_link_to_the_socket_at_its_path_then_it_is_not_touched_by_the_link(tmp_path: Path) -> None:
    path = tmp_path / "here"
    path.touch()
    file = SocketFile(f"ipc://{path}")
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    seen = last_touch(f"ipc://{tmp_path}/moved")
    assert not file.touch()
    assert last_touch(f"ipc://{tmp_path}/moved") == seen
