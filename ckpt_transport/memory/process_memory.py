"""The kernel reads private memory of another process straight to where its bytes are to be.

Source: man 2 process_vm_readv; man 2 madvise, MADV_COLLAPSE.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import sys
from collections.abc import Iterable
from functools import cache
from typing import Annotated

import msgspec
import numpy as np

from ckpt_transport.errors import PeerLostError, TransferError
from ckpt_transport.memory.copy import by_threads
from ckpt_transport.memory.cores import usable_cores
from ckpt_transport.memory.host_copies import HostCopies, Numbers
from ckpt_transport.memory.libc import libc
from ckpt_transport.memory.processes import why_not_by_policy

AT_ONCE = 1023
"""Runs that one call reads beside the nonce: the kernel takes 1024."""
NOTHING = HostCopies.of(())
HUGE_PAGE = 2 << 20
_MADV_COLLAPSE = 25
_GAP = 64 << 10
"""Bytes between two tensors for which these still share a huge page."""
NONCE_BYTES = 16
_NONCE = ctypes.create_string_buffer(secrets.token_bytes(NONCE_BYTES), NONCE_BYTES)
_PATIENCE = 3
"""So often the kernel may stop in the middle without a reason before that is an error."""


_refused: list[str] = []
"""What the system has refused in this process."""


class OtherProcess(msgspec.Struct, frozen=True, array_like=True):
    """A process whose memory is read.

    Attributes:
        pid: its number.
        address: where it keeps its nonce.
        nonce: that no other process has there, so one that got its number later is not taken for it.
    """

    pid: Annotated[int, msgspec.Meta(gt=0, lt=1 << 31)]
    address: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
    nonce: bytes

    def read(self, copies: HostCopies) -> None:
        """Read runs of its memory, whose addresses there are the sources, into this process. All cores do.

        Raises: as :meth:`check`.
        """
        by_threads(copies.in_batches(most=AT_ONCE), self._read_batch, usable_cores())

    def check(self) -> None:
        """
        Raises:
            PeerLostError: it has ended.
            TransferError: its memory cannot be read, because the system forbids it or it was freed.
        """
        self._read_batch(NOTHING)

    def _read_batch(self, copies: HostCopies) -> None:
        left = copies
        for _ in range(_PATIENCE):
            left = self._read_some(left)
            if not len(left):
                return
        raise TransferError(
            f"the memory of process {self.pid} at {left.sources[0]:#x} cannot be read, or that at "
            f"{left.targets[0]:#x} of this process cannot be written; tensors that are lent must not be freed before "
            "the update has ended"
        )

    def _read_some(self, copies: HostCopies) -> HostCopies:
        """Read the nonce, and of the copies as much as the kernel does at once; return what is left of them."""
        nonce = ctypes.create_string_buffer(NONCE_BYTES)
        here = _vectors(ctypes.addressof(nonce), copies.targets, copies.sizes)
        there = _vectors(self.address, *_joined(copies.sources, copies.sizes))
        done = libc().process_vm_readv(self.pid, here.ctypes.data, len(here), there.ctypes.data, len(there), 0)
        if done < 0:
            raise self._failure(ctypes.get_errno())
        if nonce.raw != self.nonce:
            raise self._failure(errno.ESRCH)
        ends = np.cumsum(copies.sizes)
        first = int(np.searchsorted(ends, done - NONCE_BYTES, side="right"))
        left = copies[first:]
        if not len(left):
            return left
        more = left.sizes.copy()
        more[0] = int(ends[first]) - (done - NONCE_BYTES)
        by = left.sizes - more
        return HostCopies(left.targets + by, left.sources + by, more)

    def _failure(self, number: int) -> TransferError | PeerLostError:
        if number in (errno.ESRCH, errno.EFAULT):
            return PeerLostError(f"process {self.pid}, whose memory was to be read, has ended")
        reason = f"the memory of process {self.pid} cannot be read: {os.strerror(number)}"
        if number == errno.EPERM:
            reason += "; a filter of system calls or a security module may forbid process_vm_readv"
            _refused.append(reason)
        return TransferError(reason)


def _joined(addresses: Numbers, sizes: Numbers) -> tuple[Numbers, Numbers]:
    """The same runs, of which those that lie one behind the other are one: the kernel looks each up by itself."""
    if not len(sizes):
        return addresses, sizes
    first = np.append(True, addresses[1:] != addresses[:-1] + sizes[:-1]).nonzero()[0]
    return addresses[first], np.add.reduceat(sizes, first)


def _vectors(nonce: int, addresses: Numbers, sizes: Numbers) -> Numbers:
    """Where the nonce and some runs lie, as the kernel takes it: address and bytes of each."""
    vectors = np.empty((len(sizes) + 1, 2), np.int64)
    vectors[0] = nonce, NONCE_BYTES
    vectors[1:, 0] = addresses
    vectors[1:, 1] = sizes
    return vectors


def this_process() -> OtherProcess:
    """As others know this process."""
    return OtherProcess(os.getpid(), ctypes.addressof(_NONCE), _NONCE.raw)


def why_no_reading() -> str:
    """Why this process may not read the memory of others, in words; empty where it may read that of some.

    Once another process could not be read although the rules let it, that counts for all.
    """
    return next(iter(_refused), "") or _why_by_trying()


@cache
def _why_by_trying() -> str:
    try:
        this_process().check()
    except (AttributeError, TransferError) as error:
        return str(error)
    return why_not_by_policy()


def use_huge_pages(places: Iterable[tuple[int, int]]) -> None:
    """Have memory put together in huge pages, where the system can: the kernel reads these about twice as fast.

    What it holds stays as it is.

    Args:
        places: address and bytes of each piece of memory.
    """
    begin = end = 0
    for address, nbytes in [*sorted(places), (sys.maxsize, 0)]:
        if address - end < _GAP:
            end = max(end, address + nbytes)
            continue
        first, last = -(-begin // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
        if first < last:  # in one call, since each waits for all cores
            libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_COLLAPSE)
        begin, end = address, address + nbytes
