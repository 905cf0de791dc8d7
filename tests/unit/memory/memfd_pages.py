"""Ranges of host memory that are put together of files without a name, as ranges of a GPU are of its allocations."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

from ckpt_transport.errors import RegistrationError
from ckpt_transport.memory.libc import libc
from ckpt_transport.memory.open_files import OpenFileServer
from ckpt_transport.memory.page_range import PageRange

NBYTES = 2 << 20
START = 1 << 40
"""Where the owner's range starts, as far as it says."""
_FIXED, _NORESERVE = 0x10, 0x4000
_FAILED = ctypes.c_void_p(-1).value


class MemfdPages:
    """Maps memfds; what it has mapped and reserved can be looked at.

    Attributes:
        reserved, mapped: addresses, and the bytes there.
    """

    def __init__(self) -> None:
        self.reserved: dict[int, int] = {}
        self.mapped: dict[int, int] = {}

    def reserve(self, nbytes: int) -> int:
        address = _mmap(0, nbytes, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE, -1)
        self.reserved[address] = nbytes
        return address

    def map(self, address: int, nbytes: int, file: int) -> None:
        if os.fstat(file).st_size != nbytes:
            raise RegistrationError(f"the file has {os.fstat(file).st_size} bytes, and not {nbytes}")
        _mmap(address, nbytes, mmap.PROT_READ, mmap.MAP_SHARED | _FIXED, file)
        self.mapped[address] = nbytes

    def let_use(self, address: int, nbytes: int) -> None:
        assert sum(self.mapped.values()) == sum(self.reserved.values())

    def unmap(self, address: int, nbytes: int) -> None:
        assert self.mapped.pop(address) == nbytes
        _mmap(address, nbytes, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _FIXED | _NORESERVE, -1)

    def release(self, address: int, nbytes: int) -> None:
        assert not self.mapped
        assert self.reserved.pop(address) == nbytes
        libc().munmap(ctypes.c_void_p(address), ctypes.c_size_t(nbytes))


def _mmap(address: int, nbytes: int, protection: int, flags: int, file: int) -> int:
    libc().mmap.restype = ctypes.c_void_p
    size = ctypes.c_size_t(nbytes)
    found = libc().mmap(ctypes.c_void_p(address), size, protection, flags, file, ctypes.c_long(0))
    if found == _FAILED:
        raise RegistrationError(f"mmap: {os.strerror(ctypes.get_errno())}")
    return int(found)


class Owner:
    """A process that hands over files of known bytes, each by its address and number.

    Attributes:
        server: who hands them over.
    """

    def __init__(self, server: OpenFileServer, files: dict[tuple[int, int], int]) -> None:
        self.server, self._files = server, files
        self._sizes: list[int] = []

    def grow(self, *sizes: int) -> PageRange:
        """Have more memory behind what there is; returns all of it."""
        for nbytes in sizes:
            key = START + sum(self._sizes), len(self._sizes)
            self._files[key] = os.memfd_create("page")
            os.write(self._files[key], content(len(self._sizes), nbytes))
            self._sizes.append(nbytes)
        return PageRange(self.server.name, START, tuple(self._sizes), tuple(range(len(self._sizes))))

    def free(self, number: int) -> None:
        starts = list(accumulate(self._sizes, initial=START))
        os.close(self._files.pop((starts[number], number)))


@contextmanager
def owner() -> Iterator[Owner]:
    files: dict[tuple[int, int], int] = {}

    def open_file(address: int, number: int) -> int:
        if (address, number) not in files:
            raise RegistrationError(f"allocation {number} was freed")
        return os.dup(files[address, number])

    with OpenFileServer(open_file) as server:
        yield Owner(server, files)
    for file in files.values():
        os.close(file)


def content(number: int, nbytes: int) -> bytes:
    """What an allocation holds: other bytes in each, that differ along it."""
    period = bytes((number * 37 + at * 11) % 251 for at in range(251))
    return (period * (nbytes // len(period) + 1))[:nbytes]


def contents(sizes: Sequence[int]) -> bytes:
    return b"".join(content(number, nbytes) for number, nbytes in enumerate(sizes))
