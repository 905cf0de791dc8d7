"""Making gloo let go.

A gloo operation that waits for a peer cannot be cancelled: neither ``abort`` nor ``shutdown`` of its process group wakes
it, and the group's destructor waits for it. What does wake it is the end of its connections. Gloo does not hand these
out, so they are found among this process's sockets: those that came into being while the group was connected, and that
lead to the listener of one of its members or come from this one's.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress


class Connections:
    """The sockets that come into being between construction and :meth:`find`."""

    def __init__(self) -> None:
        self._before = frozenset(inode for inode, _ in _sockets())
        self._inodes: frozenset[int] = frozenset()

    def listening_port(self) -> int:
        """The port of gloo's own listener; 0 when there is none."""
        for inode, fd in _sockets():
            with _borrowed(fd) as sock:
                if inode not in self._before and _is_tcp(sock) and not _peer_port(sock):
                    return int(sock.getsockname()[1])
        return 0

    def find(self, ports: Collection[int]) -> None:
        """Remember the new connections from or to the listeners at ``ports``."""
        found = set()
        for inode, fd in _sockets():
            with _borrowed(fd) as sock:
                if inode not in self._before and _is_tcp(sock):
                    peer = _peer_port(sock)
                    if peer and (peer in ports or sock.getsockname()[1] in ports):
                        found.add(inode)
        self._inodes = frozenset(found)

    def end(self) -> None:
        """Shut them down, in both directions. Whatever waits on them fails at once, here and at the peers."""
        for inode, fd in _sockets():
            if inode in self._inodes:
                with _borrowed(fd) as sock, suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


def _sockets() -> Iterator[tuple[int, int]]:
    """Inode and descriptor of every socket this process has."""
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):
            status = os.stat(int(name))
            if stat.S_ISSOCK(status.st_mode):
                yield status.st_ino, int(name)


@contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    with closing(socket.socket(fileno=os.dup(fd))) as sock:
        yield sock


def _is_tcp(sock: socket.socket) -> bool:
    return sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM


def _peer_port(sock: socket.socket) -> int:
    try:
        return int(sock.getpeername()[1])
    except OSError:
        return 0
