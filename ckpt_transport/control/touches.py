"""Who listens at a UNIX socket shows that it is alive by touching the socket's file, and sends its host nothing.

A touch sets the file's time to that of the monotonic clock in whole milliseconds. The nanoseconds after them are a
mark of the socket: file systems give the number of a file that was removed to the next one.
"""

from __future__ import annotations

import os
import secrets
import time
from typing import NamedTuple

SCHEME = "ipc://"
MARKS = 1_000_000
"""Nanoseconds of a millisecond. A file system that keeps fewer digits keeps the same ones of each touch."""


class FileNumber(NamedTuple):
    """Tells a file from all others that are there at the same time."""

    device: int
    inode: int


class Touch(NamedTuple):
    """What can be seen of the last touch of a socket's file.

    Attributes:
        file: which one it is.
        mark: of the socket that is bound there.
        at: seconds of the toucher's monotonic clock.
    """

    file: FileNumber
    mark: int
    at: float


class SocketFile:
    """The file of a UNIX socket that this process has just bound.

    Args:
        address: where it is bound; at one of another kind there is no file, and no touch.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._number = _number(address)
        self._mark = secrets.randbelow(MARKS)
        self.touch()

    def touch(self) -> bool:
        """Touch the file; whether that could be done. Another one that lies there by now is left alone."""
        if self._number is None or _number(self._address) != self._number:
            return False
        now = time.monotonic_ns() // MARKS * MARKS + self._mark
        try:
            os.utime(_path(self._address), ns=(now, now), follow_symlinks=False)
        except OSError:  # it was removed just now, or lies where nothing can be written
            return False
        return True


def is_file(address: str) -> bool:
    """Whether there is a file at the address, which everybody who can send there can look at."""
    return address.startswith(SCHEME)


def last_touch(address: str) -> Touch | None:
    """Look at the file at an address; None where there is none."""
    status = _status(address)
    if status is None:
        return None
    nanoseconds = status.st_mtime_ns
    return Touch(FileNumber(status.st_dev, status.st_ino), nanoseconds % MARKS, nanoseconds / 1e9)


def _path(address: str) -> str:
    return address.removeprefix(SCHEME)


def _number(address: str) -> FileNumber | None:
    status = _status(address)
    return None if status is None else FileNumber(status.st_dev, status.st_ino)


def _status(address: str) -> os.stat_result | None:
    try:
        return os.lstat(_path(address)) if is_file(address) else None
    except OSError:
        return None
