"""Open files go from one process to others of its user; whoever gets none hears why."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from ckpt_transport.errors import PeerLostError, RegistrationError, TransferError
from ckpt_transport.memory.open_files import AT_ONCE, OpenFileServer, files_in_reach, received_files
from tests.fleet import context
from tests.patience import DEADLINE

OTHER_USER = 64001
FREED = 404
CLONE_NEWNET = 0x40000000
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users, or leave a namespace")


def made(address: int, number: int) -> int:
    """A file that holds what it was asked for by."""
    if number == FREED:
        raise RegistrationError(f"allocation {number} was freed")
    file = os.memfd_create("made")
    os.write(file, f"{address} {number}".encode())
    return file


def serve(pipe: Connection, user: int) -> None:
    if user:
        os.setresuid(user, user, user)
    with OpenFileServer(made) as server:
        pipe.send(server.name)
        pipe.recv()
        pipe.send(len(os.listdir("/proc/self/fd")))
        pipe.recv()


@contextmanager
def serving(user: int = 0) -> Iterator[tuple[str, Connection, int]]:
    """A process that hands over files: the name of its server, a pipe to it and its number."""
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, user), daemon=True)
    process.start()
    assert process.pid is not None
    try:
        assert ours.poll(DEADLINE)
        yield ours.recv(), ours, process.pid
    finally:
        process.kill()
        process.join()


def read(file: int) -> str:
    return os.pread(file, 100, 0).decode()


def open_here() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def test_given_many_files_of_another_process_then_each_comes_in_its_turn_and_none_stays_open_anywhere() -> None:
    keys = [(1 << 40 | number, number) for number in range(3 * AT_ONCE + 7)]
    with serving() as (server, pipe, _):
        before = open_here()
        most = 0
        for key, file in zip(keys, received_files(server, keys), strict=True):
            assert read(file) == f"{key[0]} {key[1]}"
            most = max(most, len(open_here()) - len(before))
        assert most <= AT_ONCE + 2
        assert open_here() == before
        pipe.send("count")
        assert pipe.recv() < AT_ONCE


def test_given_a_receiver_that_stops_in_the_middle_then_no_file_stays_open() -> None:
    with serving() as (server, _, _):
        before = open_here()
        files = received_files(server, [(1, number) for number in range(AT_ONCE)])
        next(files)
        files.close()
        assert open_here() == before


def test_given_a_file_that_is_not_there_any_more_then_it_is_said_why_and_others_are_handed_over_later() -> None:
    with serving() as (server, _, _):
        with pytest.raises(TransferError, match="does not hand it over: allocation 404 was freed"):
            list(received_files(server, [(1, 1), (1, FREED), (1, 2)]))
        assert [read(file) for file in received_files(server, [(1, 2)])] == ["1 2"]


@pytest.mark.parametrize("name", ["killed", "never"])
def test_given_a_process_that_has_ended_then_whoever_asks_hears_that(name: str) -> None:
    with serving() as (server, _, pid):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(PeerLostError, match="has ended"):
        list(received_files(server if name == "killed" else "ckpt-transport-no-such-server", [(1, 1)]))


@only_root
def test_given_a_process_of_another_user_then_nothing_is_taken_from_it() -> None:
    with serving(OTHER_USER) as (server, _, _), pytest.raises(RegistrationError, match="is of another user"):
        list(received_files(server, [(1, 1)]))


def ask_as(user: int, server: str, pipe: Connection) -> None:
    os.setresuid(user, user, user)
    try:
        list(received_files(server, [(1, 1)]))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


@only_root
def test_given_another_user_who_asks_then_it_gets_nothing() -> None:
    """Root may hand memory over to anybody, as it may let anybody read it; it does not."""
    asked: list[int] = []

    def noted(address: int, number: int) -> int:
        asked.append(number)
        return made(address, number)

    with OpenFileServer(noted) as server:
        ours, theirs = context.Pipe()
        process = context.Process(target=ask_as, args=(OTHER_USER, server.name, theirs), daemon=True)
        process.start()
        assert ours.poll(DEADLINE)
        assert ours.recv() == (
            "TransferError: the process that has the memory does not hand it over: it is of another user"
        )
        process.join()
    assert asked == []


def test_given_somebody_who_has_only_seen_the_name_of_a_socket_then_it_gets_nothing() -> None:
    """The system lists such names to all in a network namespace, as to root of another container."""
    asked: list[int] = []

    def noted(address: int, number: int) -> int:
        asked.append(number)
        return made(address, number)

    with OpenFileServer(noted) as server:
        for guess in ("", "/", "/" + "0" * 32):
            with pytest.raises(TransferError, match="does not hand it over: whoever asks was not told its secret"):
                list(received_files(server.socket_name + guess, [(1, 1)]))
        assert asked == []
        assert len(list(received_files(server.name, [(1, 1)]))) == 1


@pytest.mark.parametrize("more", [0, 1, AT_ONCE // 2])
def test_given_a_process_that_may_open_no_more_files_then_it_says_so(more: int) -> None:
    """Given no file more, none beside the socket, or some of those that come."""
    with serving() as (server, _, _):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = set(open_here())
        unused = [number for number in range(soft) if str(number) not in taken]
        resource.setrlimit(resource.RLIMIT_NOFILE, (unused[more], hard))
        try:
            with pytest.raises(RegistrationError, match="too many open files"):
                list(received_files(server, [(1, number) for number in range(AT_ONCE)]))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(list(received_files(server, [(1, 1)]))) == 1


def test_given_a_server_that_was_closed_then_nobody_is_answered() -> None:
    server = OpenFileServer(made)
    server.close()
    server.close()
    with pytest.raises(PeerLostError):
        list(received_files(server.name, [(1, 1)]))


def ask_from_elsewhere(server: str, apart: bool, pipe: Connection) -> None:
    """Ask in the same network namespace or in another one; say which that is, and what comes."""
    if apart:
        assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
    try:
        pipe.send((files_in_reach(), len(list(received_files(server, [(1, 1)])))))
    except PeerLostError:
        pipe.send((files_in_reach(), 0))


@pytest.mark.parametrize("apart", [False, pytest.param(True, marks=only_root)])
def test_given_two_processes_then_they_know_whether_one_reaches_the_other(apart: bool) -> None:
    assert str(os.geteuid()) in files_in_reach()
    with OpenFileServer(made) as server:
        ours, theirs = context.Pipe()
        process = context.Process(target=ask_from_elsewhere, args=(server.name, apart, theirs), daemon=True)
        process.start()
        assert ours.poll(DEADLINE)
        there, came = ours.recv()
        assert (there == files_in_reach()) is (came == 1) is not apart
        process.join()


def test_given_a_name_then_it_leaves_no_file_behind() -> None:
    with OpenFileServer(made) as server:
        listed = Path("/proc/net/unix").read_text(encoding="ascii")
        assert f"@{server.socket_name}" in listed


def serve_with_a_full_table(pipe: Connection) -> None:
    with OpenFileServer(made) as server:
        pipe.send(server.name)
        pipe.recv()
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
        opened: list[int] = []
        with suppress(OSError):
            while True:
                opened.append(os.open("/dev/null", os.O_RDONLY))
        pipe.send("full")
        pipe.recv()
        for file in opened:
            os.close(file)
        pipe.send("free")
        pipe.recv()


def test_given_an_owner_that_may_open_no_more_files_then_whoever_asks_hears_so_and_gets_them_later() -> None:
    """A connection is accepted nevertheless: who waits for one has a file for it already."""
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_with_a_full_table, args=(theirs,), daemon=True)
    process.start()
    try:
        assert ours.poll(DEADLINE)
        server = ours.recv()
        ours.send("fill")
        assert ours.recv() == "full"
        with pytest.raises(TransferError, match=r"does not hand it over: .*Too many open files"):
            list(received_files(server, [(1, 1)]))
        ours.send("free")
        assert ours.recv() == "free"
        assert [read(file) for file in received_files(server, [(1, 2)])] == ["1 2"]
    finally:
        process.kill()
        process.join()
