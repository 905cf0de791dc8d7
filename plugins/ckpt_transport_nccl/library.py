"""Makes the few calls of NCCL that a broadcast needs.

Torch's own process groups are not used: their watchdog ends the process when a peer is late, and they wait for each
other on a store of their own. Source of the calls: NCCL User Guide, "Communicator Creation and Management" and
"Fault Tolerance"; the library is the one that torch has loaded.
"""

from __future__ import annotations

import ctypes
import enum
import time
from collections.abc import Callable
from functools import cache

from ckpt_transport import TransferError, TransferTimeout

NAME = "libnccl.so.2"
ID_BYTES = 128
UINT8 = 1
"""``ncclUint8``."""
UNDEFINED = -(2**31)
"""``NCCL_CONFIG_UNDEF_INT``."""
MAGIC = 0xCAFEBEEF
CONFIG_VERSION = 21800
"""NCCL 2.18.0: the first with all fields of :class:`NcclConfig`. Newer versions fill in the fields they have added."""
POLL_SECONDS = 0.0005


class Status(enum.IntEnum):
    """``ncclResult_t``, those that mean something here."""

    SUCCESS = 0
    INVALID_USAGE = 5
    IN_PROGRESS = 7


class UniqueId(ctypes.Structure):
    _fields_ = (("internal", ctypes.c_byte * ID_BYTES),)


class NcclConfig(ctypes.Structure):
    """``ncclConfig_t`` as of NCCL 2.18."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("magic", ctypes.c_uint),
        ("version", ctypes.c_uint),
        ("blocking", ctypes.c_int),
        ("cga_cluster_size", ctypes.c_int),
        ("min_ctas", ctypes.c_int),
        ("max_ctas", ctypes.c_int),
        ("net_name", ctypes.c_char_p),
        ("split_share", ctypes.c_int),
    )


@cache
def library() -> ctypes.CDLL:
    """
    Raises:
        OSError: there is no NCCL.
    """
    found = ctypes.CDLL(NAME)
    found.ncclGetErrorString.restype = ctypes.c_char_p
    found.ncclGetLastError.restype = ctypes.c_char_p
    return found


def version() -> int:
    """As 10000 * major + 100 * minor + patch."""
    found = ctypes.c_int()
    library().ncclGetVersion(ctypes.byref(found))
    return found.value


def unique_id() -> bytes:
    """Return what the members of a new communicator must share."""
    made = UniqueId()
    _check(library().ncclGetUniqueId(ctypes.byref(made)), None)
    return bytes(made)


class Communicator:
    """One member of a communicator. One thread drives it, with its device current.

    Members meet in one that never blocks, so that it can be given up while others are waited for. Broadcasts use a
    second one, split off the first, where a call may block: NCCL starts a thread for each call that may not, and that
    takes seven times as long as enqueuing a broadcast. Only the first broadcast waits for others: it connects them. The
    meeting can be left then.

    Args:
        identity: from :func:`unique_id` of one member.
        rank, size: this member, and how many there are.
        deadline: of the monotonic clock, for all members to turn up.
        watch: called while others are waited for; what it raises ends the wait.

    Raises:
        TransferTimeout: they did not.
        TransferError: NCCL refused.
    """

    def __init__(self, identity: bytes, rank: int, size: int, deadline: float, watch: Callable[[], object]) -> None:
        self._meeting, self._comm = ctypes.c_void_p(), ctypes.c_void_p()
        try:
            status = library().ncclCommInitRankConfig(
                ctypes.byref(self._meeting), size, UniqueId.from_buffer_copy(identity), rank, _config(blocking=0)
            )
            _check(status, self._meeting)
            self._wait_for_members(self._meeting, deadline, watch)
            status = library().ncclCommSplit(self._meeting, 0, rank, ctypes.byref(self._comm), _config(blocking=1))
            _check(status, self._meeting)
            self._wait_for_members(self._comm, deadline, watch)
        except BaseException:
            self.abort()
            raise

    def broadcast(self, address: int, nbytes: int, root: int, stream: int) -> None:
        """Enqueue a broadcast of device memory, in place, from member ``root`` on a CUDA stream."""
        memory = ctypes.c_void_p(address)
        status = library().ncclBroadcast(
            memory, memory, ctypes.c_size_t(nbytes), UINT8, root, self._comm, ctypes.c_void_p(stream)
        )
        while status == Status.IN_PROGRESS:  # with NCCL_COMM_BLOCKING=0 in the environment
            status = _state(self._comm)
        _check(status, self._comm)

    def leave_meeting(self) -> None:
        """Free what only meeting needed, most of it memory of the device, when no member needs it any more: after the
        first broadcast. May wait for members on the same host."""
        meeting, self._meeting = self._meeting, ctypes.c_void_p()
        _check(library().ncclCommDestroy(meeting), None)

    def check(self) -> None:
        """
        Raises:
            TransferError: something has gone wrong since.
        """
        _check(_state(self._comm), self._comm)

    def abort(self) -> None:
        """End what is in flight and free everything. Idempotent, and needs no other member."""
        meeting, self._meeting = self._meeting, ctypes.c_void_p()
        if meeting:
            library().ncclCommAbort(meeting)
        comm, self._comm = self._comm, ctypes.c_void_p()  # later: a split under way is over then
        if comm:
            library().ncclCommAbort(comm)

    def _wait_for_members(self, made: ctypes.c_void_p, deadline: float, watch: Callable[[], object]) -> None:
        """Wait until a communicator is made, and the one that makes it is idle."""
        while (state := _state(self._meeting)) == Status.IN_PROGRESS or not made:
            _check(state, self._meeting)
            if time.monotonic() > deadline:
                raise TransferTimeout("NCCL's other members did not turn up in time")
            watch()
            time.sleep(POLL_SECONDS)
        _check(state, self._meeting)


def _config(blocking: int) -> ctypes._CArgObject:
    return ctypes.byref(
        NcclConfig(
            ctypes.sizeof(NcclConfig), MAGIC, CONFIG_VERSION, blocking, UNDEFINED, UNDEFINED, UNDEFINED, None, UNDEFINED
        )
    )


def _state(comm: ctypes.c_void_p) -> int:
    state = ctypes.c_int()
    status: int = library().ncclCommGetAsyncError(comm, ctypes.byref(state))
    return status or state.value


def _check(status: int, comm: ctypes.c_void_p | None) -> None:
    if status in (Status.SUCCESS, Status.IN_PROGRESS):
        return
    what = library().ncclGetErrorString(status).decode()
    why = (library().ncclGetLastError(comm) or b"").decode().strip()
    hint = ""
    if status == Status.INVALID_USAGE:
        hint = "; ranks that share a GPU need NCCL 2.30 and NCCL_MULTI_RANK_GPU_ENABLE=1"
    raise TransferError(f"NCCL {version()}: {what}{': ' + why if why else ''}{hint}")
