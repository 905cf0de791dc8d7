"""Wraps one Mooncake transfer engine, with its return codes as errors that say what they mean.

Source of the calls: "Transfer Engine Python API" of github.com/kvcache-ai/Mooncake; of the codes: its ``error.h``.
"""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from ckpt_transport import PeerLostError, RegistrationError, TransferError, TransportError
from ckpt_transport.spi import may_have_devices, native_module

VERBS = "libibverbs.so.1"
PAUSE_SECONDS = 0.0001
"""Between two looks at a read that is under way."""

BATCH = 512
"""How many reads one :meth:`MooncakeEngine.read` has under way at once.

Over TCP, Mooncake 0.3.13 queues up to 1,024 per peer (``MC_TCP_MAX_QUEUED_TRANSFERS_PER_PEER``). As many again wait for
a second, the others are rejected, and then those in the queue may never end.
"""

NO_SERVER = "P2PHANDSHAKE"
"""Instead of the address of a metadata server: peers ask each other."""

CODES = {
    -1: "invalid argument",
    -2: "too many requests",
    -3: "the memory is not registered",
    -4: "the batch is still busy",
    -6: "no such RDMA device",
    -7: "the memory overlaps with memory that is registered already",
    -8: "not a segment of this process",
    -101: "the host name cannot be resolved",
    -102: "a socket failed",
    -103: "a peer sent what is not JSON",
    -104: "the peer rejected the handshake",
    -200: "the metadata of a segment cannot be had",
    -201: "an RDMA connection failed",
    -202: "an RDMA device cannot be used",
    -300: "NUMA memory could not be bound",
    -301: "the clock cannot be read",
    -302: "out of memory, or the memory cannot be registered",
    -303: "not implemented on this system",
}
RUNNING, DONE = 0, 1
"""What ``transfer_check_status`` returns; anything below zero is a failure."""


def missing_library() -> str:
    """Return why Mooncake cannot be loaded, or nothing. Loads the RDMA library, which looks at no device."""
    if importlib.util.find_spec("mooncake") is None:
        return "the Mooncake transfer engine is not installed"
    try:
        ctypes.CDLL(VERBS)
    except OSError as error:
        return f"Mooncake needs the RDMA library: {error}"
    return ""


def how_to_install() -> str:
    """The command that installs the build of Mooncake for this machine: the one for CUDA does not load without it."""
    if may_have_devices():
        return "pip install 'ckpt-transport[mooncake]'"
    return "pip install mooncake-transfer-engine-non-cuda"


class MooncakeEngine:
    """One transfer engine. Several threads may use it.

    Args:
        host: the address at which peers reach this process.
        protocol: ``rdma`` or ``tcp``.
        devices: RDMA devices it may use; ignored for ``tcp``.

    Raises:
        TransportError: it cannot be loaded or started.

    Attributes:
        address: what peers read from.
        moves_cuda: whether this build of Mooncake can move memory of CUDA devices.
    """

    def __init__(self, host: str, protocol: str, devices: Sequence[str]) -> None:
        library = native_module("mooncake.engine", how_to_install())
        self._closing = threading.Event()
        self._engine: Any = library.TransferEngine()
        listed = ",".join(devices)
        code = self._engine.initialize(host, NO_SERVER, protocol, listed)
        if code:
            raise TransportError(f"Mooncake cannot start on {host} over {protocol} {listed}: {meaning(code)}")
        self.address = f"{host}:{self._engine.get_rpc_port()}"
        self.moves_cuda = bool(library.SUPPORT_CUDA)

    def register(self, address: int, nbytes: int) -> None:
        """
        Raises:
            RegistrationError: Mooncake cannot use that memory.
        """
        code = self._engine.register_memory(address, nbytes)
        if code:
            raise RegistrationError(f"{nbytes:,} bytes cannot be registered with Mooncake: {meaning(code)}")

    def unregister(self, address: int) -> None:
        """Undo :meth:`register`; does nothing once the engine is closed."""
        code = self._engine.unregister_memory(address) if self._engine is not None else 0
        if code:
            raise RegistrationError(f"memory cannot be unregistered from Mooncake: {meaning(code)}")

    def read(self, peer: str, local: Sequence[int], remote: Sequence[int], nbytes: Sequence[int]) -> None:
        """Read a scatter list from a peer, one batch after another; returns when all of it is here.

        Args:
            peer: the address of its engine.
            local, remote, nbytes: addresses here and there, and lengths, in memory that was registered there.

        Raises:
            PeerLostError: the peer cannot be reached, or the connection ended.
            TransferError: Mooncake failed in another way; or the engine was stopped meanwhile, and goes on reading
                until :meth:`close`, because Mooncake cannot call a read back.
        """
        spans = zip(local, remote, nbytes, strict=True)
        while batch := tuple(islice(spans, BATCH)):
            self._pause(peer, 0)
            self._finish(peer, [self._start(peer, *span) for span in batch])

    def _start(self, peer: str, local: int, remote: int, nbytes: int) -> int:
        """Submit one read. Each is a request of its own: Mooncake reports on no more than the first of several."""
        request: int = self._engine.batch_transfer_async_read(peer, [local], [remote], [nbytes])
        if not request:
            raise PeerLostError(f"Mooncake cannot reach {peer}")
        return request

    def _finish(self, peer: str, requests: Iterable[int]) -> None:
        """Wait for all of them, looking at each in turn: one that has failed is seen behind one that never ends."""
        running = deque(requests)
        while running:
            request = running.popleft()
            status = self._engine.transfer_check_status(request)
            if status == RUNNING:
                running.append(request)
                self._pause(peer, PAUSE_SECONDS)
            elif status != DONE:
                raise PeerLostError(
                    f"Mooncake could not read from {peer} (status {status}): it is gone, lends that memory no more, or "
                    f"there was no room in the queue (is MC_TCP_MAX_QUEUED_TRANSFERS_PER_PEER set below {BATCH}?)"
                )

    def _pause(self, peer: str, seconds: float) -> None:
        if self._closing.wait(seconds):
            raise TransferError(f"stopped reading from {peer}")

    def stop(self) -> None:
        """Have every :meth:`read` that waits return. Idempotent."""
        self._closing.set()

    def close(self) -> None:
        """End everything, reads under way too; then Mooncake touches no memory. No call may be running. Idempotent."""
        self._engine = None


def meaning(code: int) -> str:
    """Return what a return code means, in words."""
    return f"{CODES.get(code, 'a code that its error.h does not list')} (code {code})"
