"""Memory of a GPU in another process that was put together of several allocations, and is mapped here as one range."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import msgspec

from ckpt_transport.decoding import UNREADABLE, prepared
from ckpt_transport.errors import RegistrationError
from ckpt_transport.memory.exported import GpuAllocation
from ckpt_transport.memory.open_files import FileKey, received_files

_LARGEST = 1 << 62


class PageDriver(Protocol):
    """Puts ranges of addresses together. All sizes are in bytes; whatever fails is a RegistrationError."""

    def reserve(self, nbytes: int) -> int:
        """Take addresses at which nothing is; returns the first."""

    def map(self, address: int, nbytes: int, file: int) -> None:
        """Have the memory behind an open file at these addresses. The file may be closed afterwards."""

    def let_use(self, address: int, nbytes: int) -> None:
        """Let what is mapped there be used."""

    def unmap(self, address: int, nbytes: int) -> None:
        """Take away what was mapped by one call."""

    def release(self, address: int, nbytes: int) -> None:
        """Give reserved addresses back."""


class PageRange(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """A range of addresses of another process, and the allocations that lie there one after the other.

    Attributes:
        server: the name of the :class:`~ckpt_transport.memory.open_files.OpenFileServer` that has them.
        address: where it starts in that process.
        sizes: of the allocations, in bytes.
        numbers: by which that process tells them from others that have come to their addresses.
    """

    server: str
    address: int
    sizes: tuple[int, ...]
    numbers: tuple[int, ...]

    @cached_property
    def nbytes(self) -> int:
        return sum(self.sizes)

    @property
    def keys(self) -> list[FileKey]:
        """What the server is asked for."""
        starts = accumulate(self.sizes, initial=self.address)
        return [(start, number) for start, number in zip(starts, self.numbers, strict=False)]

    @property
    def encoded(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decoded(cls, encoded: bytes) -> PageRange:
        """
        Raises:
            RegistrationError: there can be no such range.
        """
        try:
            found = msgspec.msgpack.decode(encoded, type=prepared(cls))
        except UNREADABLE as error:
            raise RegistrationError(f"what is handed over is unreadable: {error}") from error
        if len(found.sizes) != len(found.numbers) or not found.sizes:
            raise RegistrationError("its numbers of sizes and allocations differ, or are none")
        if any(not 0 < nbytes < _LARGEST for nbytes in found.sizes) or not 0 <= found.address < _LARGEST - found.nbytes:
            raise RegistrationError("it names memory that there cannot be")
        return found


def page_ranges(server: str, allocations: Iterable[GpuAllocation]) -> Iterator[PageRange]:
    """Join allocations that lie one after the other: a tensor may begin in one and end in the next.

    Args:
        server: who hands them over.
        allocations: ascending.
    """
    joined: list[GpuAllocation] = []
    for each in allocations:
        if joined and joined[-1].end != each.address:
            yield _range_of(server, joined)
            joined = []
        joined.append(each)
    if joined:
        yield _range_of(server, joined)


def _range_of(server: str, joined: list[GpuAllocation]) -> PageRange:
    sizes, numbers = (tuple(column) for column in zip(*((each.nbytes, each.number) for each in joined), strict=True))
    return PageRange(server, joined[0].address, sizes, numbers)


class MappedPages:
    """A range of another process, in this one.

    Args:
        pages: which.
        driver: maps it.

    Attributes:
        address: where it starts here.

    Raises:
        RegistrationError: this process may not have it, or cannot map it; says why.
        TransferError, PeerLostError: its owner has freed it, or has ended.
    """

    def __init__(self, pages: PageRange, driver: PageDriver) -> None:
        self._undo = contextlib.ExitStack()
        try:
            at = self.address = driver.reserve(pages.nbytes)
            self._undo.callback(driver.release, at, pages.nbytes)
            with contextlib.closing(received_files(pages.server, pages.keys)) as files:
                for nbytes, file in zip(pages.sizes, files, strict=True):
                    driver.map(at, nbytes, file)
                    self._undo.callback(driver.unmap, at, nbytes)
                    at += nbytes
            driver.let_use(self.address, pages.nbytes)
        except BaseException:
            with contextlib.suppress(RegistrationError):
                self.close()
            raise

    def close(self) -> None:
        """Unmap it. Nothing may use it. Idempotent.

        Raises:
            RegistrationError: a part of it stays mapped.
        """
        self._undo.close()
