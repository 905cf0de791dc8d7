"""Who listens at a UNIX socket shows that it is alive by touching the socket's file, and sends its host nothing."""

from __future__ import annotations

import os
import time

SCHEME = "ipc://"


def is_file(address: str) -> bool:
    """Whether there is a file at the address, which everybody who can send there can look at."""
    return address.startswith(SCHEME)


def touch(address: str) -> bool:
    """Give the file at one's own address the time of the monotonic clock; whether that could be done."""
    if not is_file(address):
        return False
    now = time.monotonic_ns()
    try:
        os.utime(address.removeprefix(SCHEME), ns=(now, now))
    except OSError:  # somebody has removed it, or it lies where nothing can be written
        return False
    return True


def touched_at(address: str) -> float | None:
    """What time the file at an address has, in seconds; None where there is none."""
    try:
        return os.stat(address.removeprefix(SCHEME)).st_mtime_ns / 1e9 if is_file(address) else None
    except OSError:
        return None
