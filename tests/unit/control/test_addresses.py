"""Where mailboxes may listen."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt_transport.control import addresses
from ckpt_transport.errors import ConfigError


@pytest.mark.parametrize(
    "address", ["ipc:///run/sink.sock", "tcp://10.0.0.5:7000", "tcp://engine-7.cluster:0", "tcp://[::1]:65535"]
)
def test_given_a_good_address_then_it_is_itself(address: str) -> None:
    assert addresses.check(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "", "/run/sink.sock", "ipc://", "ipc://relative", "ipc://@abstract", "ipc:///with\0nul", "tcp://", "tcp://host",
        "tcp://:5", "tcp://host:", "tcp://host:http", "tcp://host:65536", "tcp://host:1/path", "tcp://two words:1",
        "tcp://[::1:5", "http://host:1", "tcp://-:1", "tcp://..:1", "tcp://a..b:1", "tcp://-host:1", "tcp://host-:1", "tcp://[::1%]:1",
        "tcp://[host]:1", "tcp://[127.0.0.1]:1", "inproc://x", "tcp://host:1\n", "tcp://*:1", "tcp://0.0.0.0:1", "tcp://[::]:1",
    ],
)  # fmt: skip
def test_given_a_bad_address_then_it_is_named(address: str) -> None:
    with pytest.raises(ConfigError) as refused:
        addresses.check(address)
    assert f"'{address}'" in str(refused.value)


@pytest.mark.parametrize(
    ("interface", "address"),
    [
        ("127.0.0.1", "tcp://127.0.0.1:0"), ("localhost", "tcp://127.0.0.1:0"), ("::1", "tcp://[::1]:0"),
        ("fe80::1%lo", "tcp://[fe80::1%lo]:0"), ("2001:db8::7", "tcp://[2001:db8::7]:0"),
    ],
)  # fmt: skip
def test_given_an_interface_of_either_family_then_its_address_is_one_that_a_mailbox_can_have(
    interface: str, address: str
) -> None:
    assert addresses.check(addresses.any_port(interface)) == address
    assert addresses.is_ipv6(address) is (":" in interface)


def test_given_an_interface_that_nobody_knows_then_it_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'no-such-host\.invalid' is not an address or name"):
        addresses.any_port("no-such-host.invalid")


def test_given_a_path_longer_than_a_socket_can_have_then_it_is_refused() -> None:
    assert addresses.check("ipc:///" + "x" * 93)
    for path in ("x" * 94, "ü" * 47):
        with pytest.raises(ConfigError, match="100 characters"):
            addresses.check("ipc:///" + path)


@pytest.mark.parametrize(
    ("address", "stays"),
    [
        ("ipc:///run/x", True), ("tcp://127.0.0.1:1", True), ("tcp://127.8.9.1:1", True), ("tcp://[::1]:1", True),
        ("tcp://localhost:1", True), ("tcp://10.0.0.5:1", False), ("tcp://localhost.example.org:1", False),
        ("tcp://host:1", False),
    ],
)  # fmt: skip
def test_given_an_address_then_it_says_whether_other_hosts_reach_it(address: str, stays: bool) -> None:
    assert addresses.stays_on_host(address) is stays


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Pytest's own may be longer than a socket's path can be."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_given_a_runtime_directory_then_sockets_lie_in_a_private_folder_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for _ in range(2):
        directory = addresses.private_directory()
        assert directory == tmp_path / "ckpt-transport"
        assert directory.stat().st_mode & 0o777 == 0o700
    assert addresses.new_ipc_address() != addresses.new_ipc_address()


@pytest.mark.parametrize("mode", [0o770, 0o701, 0o755])
def test_given_a_folder_that_others_may_enter_then_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "ckpt-transport").mkdir()
    (tmp_path / "ckpt-transport").chmod(mode)
    with pytest.raises(ConfigError, match="only you can enter"):
        addresses.new_ipc_address()


def test_given_something_else_in_its_place_then_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    place = tmp_path / "ckpt-transport"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    for target in ("", elsewhere, tmp_path / "nothing"):
        if target:
            place.symlink_to(target)
        else:
            place.touch()
        with pytest.raises(ConfigError, match="must be a directory"):
            addresses.private_directory()
        place.unlink()


def test_given_no_runtime_directory_then_the_folder_is_in_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert addresses.private_directory() == tmp_path / f"ckpt-transport-{os.getuid()}"


def test_given_old_sockets_of_dead_processes_then_a_new_address_removes_them_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    directory = addresses.private_directory()
    sockets = {name: socket.socket(socket.AF_UNIX) for name in ("dead", "young", "alive")}
    for name, made in sockets.items():
        made.bind(str(directory / name))
        if name == "alive":
            made.listen()
        else:
            made.close()
    (directory / "file").touch()
    for name in ("dead", "alive", "file"):
        os.utime(directory / name, (0, 0))
    addresses.new_ipc_address()
    assert sorted(path.name for path in directory.iterdir()) == ["alive", "file", "young"]
    assert addresses.is_taken(f"ipc://{directory}/alive")
    assert addresses.is_taken(f"ipc://{directory}/file")
    assert not addresses.is_taken(f"ipc://{directory}/young")
    assert not addresses.is_taken(f"ipc://{directory}/nothing")
    sockets["alive"].close()


def test_given_an_interface_then_any_port_of_it_is_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody_knows(name: str) -> str:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    assert addresses.any_port("127.0.0.1") == "tcp://127.0.0.1:0"
    monkeypatch.setattr(socket, "gethostbyname", nobody_knows)
    with pytest.raises(ConfigError, match="'eth7' is not an address"):
        addresses.any_port("eth7")


@pytest.mark.parametrize(
    ("peers", "place"),
    [
        (["ipc:///run/a", "ipc:///run/b"], ""),
        (["ipc:///run/a", "tcp://127.0.0.1:5001"], "tcp://127.0.0.1:0"),
        (["tcp://[::1]:5001"], "tcp://[::1]:0"),
        (["tcp://127.0.0.1:5001", "tcp://10.0.0.7:5001"], "tcp://192.0.2.1:0"),
    ],
)
def test_given_peers_then_a_mailbox_for_them_listens_where_all_of_them_get_to(peers: list[str], place: str) -> None:
    """A UNIX socket of this user is only for those who have one themselves: others may be in another container."""
    assert addresses.place_for(peers, "192.0.2.1") == place


@pytest.mark.parametrize(
    ("address", "peers", "interface", "does"),
    [
        ("ipc:///run/own", ["ipc:///run/a"], "127.0.0.1", True),
        ("ipc:///run/own", ["tcp://127.0.0.1:5001"], "127.0.0.1", False),
        ("tcp://127.0.0.1:1", ["ipc:///run/a", "tcp://127.0.0.1:5001"], "192.0.2.1", True),
        ("tcp://127.0.0.1:1", ["tcp://10.0.0.7:5001"], "192.0.2.1", False),
        ("tcp://127.0.0.1:1", ["tcp://node:5001"], "127.0.0.1", True),  # no other place could be had
        ("tcp://192.0.2.1:1", ["tcp://127.0.0.1:5001", "tcp://10.0.0.7:5001"], "192.0.2.1", True),
    ],
)
def test_given_a_mailbox_that_is_kept_then_it_serves_those_who_get_to_it(
    address: str, peers: list[str], interface: str, does: bool
) -> None:
    assert addresses.serves(address, peers, interface) is does
