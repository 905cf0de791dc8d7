"""Who can talk to a mailbox: its address, other users of the host, and those without the secret."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from ckpt_transport.control import Mailbox, addresses
from ckpt_transport.control.messages import Codec
from ckpt_transport.control.security import Secret
from ckpt_transport.errors import ConfigError, ControlError
from tests.addresses import has_ipv6
from tests.unit.control.notes import PATIENCE, Note, next_note

# -- addresses


def test_given_an_address_where_somebody_listens_then_a_second_mailbox_is_refused(tmp_path: Path) -> None:
    for address in (f"ipc://{tmp_path}/taken", "tcp://127.0.0.1:0"):
        with Mailbox(address, [Note], insecure=True) as first:
            with pytest.raises(ControlError, match=r"somebody else does.* choose another address"):
                Mailbox(first.address, insecure=True)
            with Mailbox(types=[Note], insecure=True) as peer:
                peer.send(first.address, Note("the first still listens"))
                assert next_note(first)[1] == Note("the first still listens")


def test_given_an_address_of_another_host_then_the_error_says_whose_it_must_be() -> None:
    with pytest.raises(ControlError, match=r"tcp://198\.51\.100\.77:5555: this host has no such address"):
        Mailbox("tcp://198.51.100.77:5555", secret=SECRET)


FEW_FILES = """
import os, resource
from ckpt_transport.control import Mailbox
from ckpt_transport.errors import ControlError

Mailbox().close()
said = ""
while not said:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = globals().get("limit", len(os.listdir("/proc/self/fd")) + 40) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    try:
        Mailbox().close()
    except ControlError as error:
        said = str(error)
print(said)
"""
"""A process that may have one open file less each time, until a mailbox cannot be made."""


def test_given_no_more_open_files_then_a_mailbox_says_the_cure() -> None:
    said = subprocess.run([sys.executable, "-c", FEW_FILES], capture_output=True, text=True, timeout=PATIENCE)
    assert (said.returncode, said.stdout.count("ulimit -n 65536")) == (0, 1), said.stderr


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


def test_given_no_secret_then_no_heartbeats_go_to_another_host(mailbox: Mailbox) -> None:
    with pytest.raises(ConfigError, match="secret_file"):
        mailbox.watch("tcp://10.0.0.5:1")


# -- what is no mailbox

WEB = """
import socket, threading, time
from contextlib import suppress
from ckpt_transport.control import Mailbox
from ckpt_transport.control.messages import Refused

LINES = b"HTTP/1.1 400 Bad Request\\r\\nconnection: close\\r\\ncontent-length: 0\\r\\nserver: of something else\\r\\n"

def serve(listener):
    while True:
        connection, _ = listener.accept()
        time.sleep(0.005)
        with suppress(OSError):
            connection.sendall(LINES)
        connection.close()

def ask(connections):
    for connection in connections:
        with suppress(OSError):
            connection.sendall(LINES)

server = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=serve, args=(server,), daemon=True).start()
for number in range(30):
    mailbox = Mailbox("tcp://127.0.0.1:0", insecure=True)
    port = int(mailbox.address.rpartition(":")[2])
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    browser = threading.Thread(target=ask, args=(connections,))
    mailbox.send("tcp://127.0.0.1:%d" % server.getsockname()[1], Refused("hello"))
    time.sleep(number % 3 * 0.001)
    browser.start()
    mailbox.close()
    browser.join()
"""


def test_given_a_web_server_and_browsers_as_peers_then_a_mailbox_that_closes_ends_nobody() -> None:
    """Given that both speak while the mailbox closes. libzmq would end the whole process."""
    ended = subprocess.run([sys.executable, "-c", WEB], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


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


@pytest.mark.parametrize("listens_at", ["", "tcp://127.0.0.1:0"])
def test_given_a_secret_and_an_immediate_close_then_last_words_still_arrive(mailbox: Mailbox, listens_at: str) -> None:
    """Given members with a secret, when each closes right after it has connected, then no last word is lost."""
    for number in range(30):
        with Mailbox(listens_at, [Note], secret=SECRET) as brief:
            brief.send(mailbox.address, Note(f"last words of {number}"))
        assert next_note(mailbox) == (brief.address, Note(f"last words of {number}"))


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
