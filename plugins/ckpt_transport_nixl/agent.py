"""Wraps one NIXL agent with its UCX back end, and says NIXL's errors in our words.

The agent is made from NIXL's bindings and not by its Python wrapper: the wrapper has the progress thread poll without a
pause, which takes a core on every rank for as long as a route is open, and sends descriptors by pickle. Source of the
calls: NIXL's ``nixl.h`` and ``nixl.md`` (github.com/ai-dynamo/nixl).
"""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from ckpt_transport import PeerLostError, RegistrationError, TransferError, TransportError
from ckpt_transport.spi import native_module

BACKEND = "UCX"
PROGRESS_MICROSECONDS = 100_000
"""How long the progress thread may sleep in poll(2). What arrives wakes it, so this costs no latency."""
PAUSE_SECONDS = 0.0001
"""Between two looks at a read that is under way."""


class NixlMemory(NamedTuple):
    """A run of bytes as NIXL takes it, and the kind of memory it is in."""

    address: int
    nbytes: int
    device: int
    """Index of the CUDA device; 0 for host memory."""
    cuda: bool = False


def package() -> str | None:
    """The NIXL that is installed; that of torch's CUDA version when there are several. Imports nothing."""
    major = (torch.version.cuda or "13").partition(".")[0]
    names = dict.fromkeys((f"nixl_cu{major}", "nixl_cu13", "nixl_cu12", "nixl"))
    return next((name for name in names if importlib.util.find_spec(name) is not None), None)


class Agent:
    """One NIXL agent. Several threads may use it.

    Args:
        name: what peers call it; unique among the agents one of them talks to.

    Raises:
        TransportError: NIXL cannot be loaded or has no UCX back end.
    """

    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._api = native_module(f"{package() or 'nixl_cu13'}._bindings", "pip install 'nixl-cu13>=1.5'")
        with self._translated(f"NIXL agent {name}", TransportError):
            config = self._api.nixlAgentConfig()
            config.useProgThread = True
            config.pthrDelay = PROGRESS_MICROSECONDS
            self._agent: Any = self._api.nixlAgent(name, config)
            self._backend = self._agent.createBackend(BACKEND, {})

    def register(self, memory: NixlMemory) -> bytes:
        """Register memory and return what a peer must :meth:`load` to read it."""
        with self._lock, self._translated(f"registering {memory.nbytes:,} bytes with NIXL", RegistrationError):
            listed = self._registrations(memory)
            self._agent.registerMem(listed, [self._backend])
            metadata: bytes = self._agent.getLocalPartialMD(listed, True, [self._backend])
            return metadata

    def unregister(self, memory: NixlMemory) -> None:
        """Undo :meth:`register`; does nothing once the agent is closed."""
        with self._lock, self._translated("unregistering memory with NIXL", RegistrationError):
            if self._agent is not None:
                self._agent.deregisterMem(self._registrations(memory), [self._backend])

    def load(self, metadata: bytes) -> str:
        """Learn of a peer's memory, and connect to the peer; returns its name."""
        with self._lock, self._translated("what a peer says of its memory", RegistrationError):
            name = str(self._agent.loadRemoteMD(metadata), "utf-8")
            self._agent.makeConnection(name, [self._backend])
            return name

    def forget(self, peer: str) -> None:
        """Unlearn all memory of a peer, and disconnect."""
        with self._lock, self._translated(f"leaving {peer}", RegistrationError):
            self._agent.invalidateRemoteMD(peer)

    def read(self, peer: str, local: Sequence[NixlMemory], remote: Sequence[NixlMemory]) -> None:
        """Read a scatter list from a peer; returns when all of it is here.

        Args:
            peer: as :meth:`load` called it.
            local, remote: pairs of equal length, in memory of one kind that was registered here, and there.

        Raises:
            PeerLostError: the peer is gone.
            TransferError: NIXL refuses or fails; or the agent was stopped meanwhile, and goes on reading until
                :meth:`close`, because a request that is under way must not be released.
        """
        api = self._api
        with self._translated(f"reading from {peer}", TransferError):
            with self._lock:
                request = self._agent.createXferReq(
                    api.NIXL_READ,
                    api.nixlXferDList(self._kind(local[0]), [memory[:3] for memory in local]),
                    api.nixlXferDList(self._kind(remote[0]), [memory[:3] for memory in remote]),
                    peer,
                    "",
                    [self._backend],
                )
            try:
                with self._lock:
                    status = self._agent.postXferReq(request)
                while status == api.NIXL_IN_PROG:
                    if self._closing.wait(PAUSE_SECONDS):
                        request = None
                        raise TransferError(f"stopped reading from {peer}")
                    with self._lock:
                        status = self._agent.getXferStatus(request)
            finally:
                if request is not None:
                    with self._lock:
                        self._agent.releaseXferReq(request)
        if status != api.NIXL_SUCCESS:
            raise TransferError(f"reading from {peer}: NIXL ended with {status}")

    def stop(self) -> None:
        """Have every :meth:`read` that waits return. Idempotent."""
        self._closing.set()

    def close(self) -> None:
        """End everything, reads under way too; then NIXL touches no memory. No call may be running. Idempotent."""
        self._agent = None

    def _registrations(self, memory: NixlMemory) -> Any:
        return self._api.nixlRegDList(self._kind(memory), [(*memory[:3], "")])

    def _kind(self, memory: NixlMemory) -> Any:
        return self._api.VRAM_SEG if memory.cuda else self._api.DRAM_SEG

    @contextlib.contextmanager
    def _translated(self, doing: str, kind: type[TransportError]) -> Iterator[None]:
        """NIXL's exceptions, which have no common base but carry their status as text, as ours."""
        try:
            yield
        except TransportError:
            raise
        except Exception as error:
            if isinstance(error, self._api.nixlRemoteDisconnectError):
                raise PeerLostError(f"{doing}: the connection is lost") from error
            raise kind(f"{doing}: {type(error).__name__}: {error}") from error
