"""The kernel reads private memory of another process straight to where its bytes are to be.

Source: man 2 process_vm_readv; man 2 madvise, MADV_COLLAPSE.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Annotated

import msgspec
import numpy as np

from ckpt_transport.errors import PeerLostError, TransferError
from ckpt_transport.memory.copy import copy_runs
from ckpt_transport.memory.host_copies import HostCopy
from ckpt_transport.memory.libc import libc
from ckpt_transport.memory.processes import why_not_by_policy

AT_ONCE = 512
"""Runs that one call reads; the kernel takes 1024."""
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

    def read(self, copies: Iterable[HostCopy]) -> None:
        """Read runs of its memory, whose addresses there are the sources, into this process. Several threads do.

        Raises: as :meth:`check`.
        """
        copy_runs((copy for copy in copies if copy.nbytes), self._read_batch)

    def check(self) -> None:
        """
        Raises:
            PeerLostError: it has ended.
            TransferError: its memory cannot be read, because the system forbids it or it was freed.
        """
        self._read_at_once([])

    def _read_batch(self, batch: Sequence[HostCopy]) -> None:
        for first in range(0, len(batch), AT_ONCE):
            self._read_at_once(batch[first : first + AT_ONCE])

    def _read_at_once(self, copies: Sequence[HostCopy]) -> None:
        left = list(copies)
        for _ in range(_PATIENCE):
            left = self._read_some(left)
            if not left:
                return
        raise TransferError(
            f"the memory of process {self.pid} at {left[0].source:#x} cannot be read, or that at {left[0].target:#x} "
            "of this process cannot be written; tensors that are lent must not be freed before the update has ended"
        )

    def _read_some(self, copies: Sequence[HostCopy]) -> list[HostCopy]:
        """Read the nonce, and of the copies as much as the kernel does at once; return what is left of them."""
        nonce = ctypes.create_string_buffer(NONCE_BYTES)
        # struct iovec is an address and a length
        table = np.array([(ctypes.addressof(nonce), self.address, NONCE_BYTES), *copies], np.uint64)
        here, there = np.ascontiguousarray(table[:, [0, 2]]), np.ascontiguousarray(table[:, [1, 2]])
        count = len(table)
        done = libc().process_vm_readv(self.pid, here.ctypes.data, count, there.ctypes.data, count, 0)
        if done < 0:
            raise self._failure(ctypes.get_errno())
        if nonce.raw != self.nonce:
            raise self._failure(errno.ESRCH)
        done -= NONCE_BYTES
        if done == int(table[1:, 2].sum()):
            return []
        left = []
        for copy in copies:
            if done < copy.nbytes:
                left.append(HostCopy(copy.target + done, copy.source + done, copy.nbytes - done))
            done = max(done - copy.nbytes, 0)
        return left

    def _failure(self, number: int) -> TransferError | PeerLostError:
        if number in (errno.ESRCH, errno.EFAULT):
            return PeerLostError(f"process {self.pid}, whose memory was to be read, has ended")
        reason = f"the memory of process {self.pid} cannot be read: {os.strerror(number)}"
        if number == errno.EPERM:
            reason += "; a filter of system calls or a security module may forbid process_vm_readv"
            _refused.append(reason)
        return TransferError(reason)


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
        for page in range(-(-begin // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE, HUGE_PAGE):
            libc().madvise(ctypes.c_void_p(page), ctypes.c_size_t(HUGE_PAGE), _MADV_COLLAPSE)
        begin, end = address, address + nbytes
