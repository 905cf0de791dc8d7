"""Makes gloo let go of what it waits for, by shutting down its sockets.

A gloo operation that waits for a peer cannot be cancelled: neither ``abort`` nor ``shutdown`` of its process group
wakes it, and the group's destructor waits for it. What does wake it is the end of its connections. Gloo does not hand
these out, so they are found among this process's sockets: those that came into being while the group was connected,
and that lead to the listener of one of its members or come from this one's.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress


class Connections:
    """The sockets that come into being between construction and :meth:`find`."""

    def __init__(self) -> None:
        self._before = frozenset(inode for inode, _ in _sockets())
        self._inodes: frozenset[int] = frozenset()

    def listening_port(self) -> int:
        """Return the port of gloo's own listener; 0 when there is none."""
        for inode, sock in _sockets():
            if inode not in self._before and _is_tcp(sock) and not _peer_port(sock):
                return int(sock.getsockname()[1])
        return 0

    def find(self, ports: Collection[int]) -> None:
        """Remember the new connections from or to the listeners at ``ports``."""
        found = set()
        for inode, sock in _sockets():
            if inode not in self._before and _is_tcp(sock):
                peer = _peer_port(sock)
                if peer and (peer in ports or sock.getsockname()[1] in ports):
                    found.add(inode)
        self._inodes = frozenset(found)

    def end(self) -> None:
        """Shut them down, in both directions. Whatever waits on them fails at once, here and at the peers."""
        for inode, sock in _sockets():
            if inode in self._inodes:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


def _sockets() -> Iterator[tuple[int, socket.socket]]:
    """Yield each socket of this process: its inode, and a handle of our own that is closed before the next is made.

    Gloo's threads close descriptors at any time. What is looked at is therefore the handle and not the number, which
    may be free or somebody else's by then.
    """
    for number in map(int, os.listdir("/dev/fd")):
        handle = _duplicate(number)
        if handle is not None:
            with handle:
                yield os.fstat(handle.fileno()).st_ino, handle


def _duplicate(number: int) -> socket.socket | None:
    """Return a handle of the socket with that descriptor; None when there is none."""
    try:
        if not stat.S_ISSOCK(os.stat(number).st_mode):
            return None
        duplicate = os.dup(number)
    except OSError:
        return None
    if stat.S_ISSOCK(os.fstat(duplicate).st_mode):
        return socket.socket(fileno=duplicate)
    os.close(duplicate)
    return None


def _is_tcp(sock: socket.socket) -> bool:
    return sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM


def _peer_port(sock: socket.socket) -> int:
    try:
        return int(sock.getpeername()[1])
    except OSError:
        return 0
