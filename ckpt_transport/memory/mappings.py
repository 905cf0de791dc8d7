"""Finds out which memory of this process must not be written.

Linux 6.11 and later answer for one address. Before that all mappings have to be read, of which a process has thousands.
"""

from __future__ import annotations

import fcntl
import re
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MAPS = Path("/proc/self/maps")
MOST_ASKED = 256
"""Mappings that are asked about one by one; of more, all are read."""
Addresses = NDArray[np.uint64]

_NOT_WRITABLE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) .-", re.MULTILINE)
"""A line of :data:`MAPS`, of memory that must not be written: first and last address."""
_QUERY = struct.Struct("=9Q4I2Q")
"""``struct procmap_query``: its size, flags and an address; then start, end and flags of a mapping; the rest is 0."""
_PROCMAP_QUERY = 3 << 30 | _QUERY.size << 16 | ord("f") << 8 | 17
_COVERING_OR_NEXT, _WRITABLE = 0x10, 0x2


def mapped_read_only(begins: Addresses, ends: Addresses) -> list[int]:
    """The numbers of those ranges of addresses of which a part is mapped and must not be written.

    Args:
        begins, ends: of each range; the end is not one of its addresses.
    """
    held = np.flatnonzero(ends > begins)
    begins, ends = begins[held], ends[held]
    try:
        unwritable = _asked(begins, ends)
    except OSError:  # the kernel is older
        unwritable = None
    low, high = np.array(_read() if unwritable is None else unwritable, np.uint64).reshape(-1, 2).T
    following = np.searchsorted(high, begins, side="right")
    hit = (following < len(high)) & (np.append(low, np.uint64(0))[following] < ends)
    numbers: list[int] = held[hit].tolist()
    return numbers


def _read() -> list[int]:
    """First and last address (exclusive) of all mappings that must not be written, in their order."""
    return [int(address, 16) for each in _NOT_WRITABLE.findall(MAPS.read_bytes()) for address in each]


def _asked(begins: Addresses, ends: Addresses) -> list[int] | None:
    """The same of those mappings that a range lies in, one after the other; None where these are many.

    Raises:
        OSError: the kernel does not answer.
    """
    order = np.argsort(begins)
    begins, reaches = begins[order], np.maximum.accumulate(ends[order])
    found: list[int] = []
    beyond = 0
    with open(MAPS, "rb", buffering=0) as maps:
        for _ in range(MOST_ASKED):
            left = int(np.searchsorted(reaches, np.uint64(beyond), side="right"))
            if left == len(reaches):
                return found
            query = bytearray(_QUERY.pack(_QUERY.size, _COVERING_OR_NEXT, max(int(begins[left]), beyond), *bytes(12)))
            try:
                fcntl.ioctl(maps, _PROCMAP_QUERY, query)
            except FileNotFoundError:
                return found
            _, _, _, low, beyond, flags, *_ = _QUERY.unpack(query)
            if not flags & _WRITABLE:
                found += (low, beyond)
    return None
