"""Wraps one UCX worker with a progress thread, and says UCX's errors in our words.

Source of the calls: UCXX, ``ucxx/_lib/libucxx.pyx`` (github.com/rapidsai/ucxx); of the settings: ``ucx_info -c -f``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import weakref
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from ckpt_transport import PeerLostError, TransferError, TransportError
from ckpt_transport.spi import native_module, use_device

CURE = "pip install ucxx-cu13"
PROGRESS_MILLISECONDS = 100
"""How long the progress thread may sleep in epoll_wait(2). What arrives wakes it, so this costs no latency."""
LOST = (
    *("ConnectionReset", "EndpointTimeout", "EndpointFailure", "NotConnected", "Unreachable", "Rejected"),
    *("Canceled", "Close", "ShmemSegment"),
)
"""What the names of those errors contain that mean that a peer is gone."""

SETTINGS = {
    "MEMTYPE_CACHE": "n",
    "POSIX_ERROR_HANDLING": "y",
    "SYSV_ERROR_HANDLING": "y",
}
"""Ours, unless the environment says otherwise. Shared memory that has no error handling is not used by endpoints that
must survive a peer, and bytes go over TCP within a host. The cache of memory types can miss torch's allocations."""
WITHOUT_GPU = {"RNDV_FRAG_MEM_TYPE": "host"}
"""Else messages larger than a fragment have no memory to pass through."""


def installed() -> bool:
    """Whether UCXX is installed. Imports nothing."""
    return importlib.util.find_spec("ucxx") is not None


def has_verbs() -> bool:
    """Whether the UCX that is installed with UCXX can use RDMA: the wheels on PyPI cannot. Imports nothing.

    A UCX that is not from a wheel counts as one that can.
    """
    wheel = importlib.util.find_spec("libucx")
    if wheel is None:
        return True
    folders = wheel.submodule_search_locations or ()
    return any(any(Path(folder).glob("lib/ucx/libuct_ib.so*")) for folder in folders)


@cache
def library() -> Any:
    """Return UCXX's native module.

    Importing it sets variables of UCX in the environment, which every other user of UCX in this process, and every
    child, would get as well: they are taken out again.
    """
    before = set(os.environ)
    try:
        return native_module("ucxx._lib.libucxx", CURE)
    finally:
        for name in [name for name in os.environ if name.startswith("UCX_") and name not in before]:
            del os.environ[name]


class Request:
    """One send or receive under way. Keeps its memory, and the worker, alive."""

    def __init__(self, request: Any, array: Any, doing: str) -> None:
        self._request, self._array, self._doing = request, array, doing

    def ended(self) -> bool:
        """
        Raises:
            PeerLostError, TransferError: it failed.
        """
        if not self._request.completed:
            return False
        with translated(self._doing):
            self._request.check_error()
        return True

    def drop(self) -> None:
        """Let go of the memory and the worker. Nobody may ask whether it has ended any more."""
        self._request = self._array = None


class Worker:
    """A context, a worker and its endpoints. One thread calls it; another, UCX's own, moves bytes.

    Args:
        device: the CUDA device whose memory is moved; that of the host when it is none.

    Raises:
        TransportError: UCX cannot be loaded or started.
    """

    def __init__(self, device: torch.device) -> None:
        self._library, self._array = library(), native_module("ucxx._lib.arr", CURE).Array
        wanted = SETTINGS if device.type == "cuda" else {**SETTINGS, **WITHOUT_GPU}
        settings = {name: value for name, value in wanted.items() if f"UCX_{name}" not in os.environ}
        with translated("starting UCX", TransportError):
            features = (self._library.Feature.TAG, self._library.Feature.WAKEUP)
            self._worker = self._library.UCXWorker(self._library.UCXContext(settings, features))
            if device.type == "cuda":
                self._worker.set_progress_thread_start_callback(partial(use_device, device))
            self._worker.start_progress_thread(polling_mode=False, epoll_timeout=PROGRESS_MILLISECONDS)
        self._endpoints: dict[bytes, Any] = {}
        self._requests: weakref.WeakSet[Request] = weakref.WeakSet()

    @property
    def address(self) -> bytes:
        """What a peer needs to :meth:`send` here."""
        address: bytes = self._worker.address.tobytes()
        return address

    def send(self, peer: bytes, tag: int, tensor: torch.Tensor, doing: str) -> Request:
        """Start sending to the worker of that address. ``doing`` says so in errors."""
        with translated(doing):
            if peer not in self._endpoints:
                address = self._library.UCXAddress.create_from_buffer(peer)
                self._endpoints[peer] = self._worker.create_endpoint_from_worker_address(address, True)
            array = self._array(_exposed(tensor))
            return self._keep(self._endpoints[peer].tag_send(array, self._library.UCXXTag(tag)), array, doing)

    def receive(self, tag: int, tensor: torch.Tensor, doing: str) -> Request:
        """Start receiving the message of that tag, whoever sends it."""
        with translated(doing):
            array = self._array(_exposed(tensor))
            return self._keep(self._worker.tag_recv(array, self._library.UCXXTag(tag)), array, doing)

    def close(self) -> None:
        """End everything, requests under way too: then UCX touches no memory. Idempotent."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop_progress_thread()
            for request in self._requests:
                request.drop()
            self._endpoints.clear()

    def _keep(self, started: Any, array: Any, doing: str) -> Request:
        request = Request(started, array, doing)
        self._requests.add(request)
        return request


@contextlib.contextmanager
def translated(doing: str, kind: type[TransportError] = TransferError) -> Iterator[None]:
    """Raise UCX's exceptions as ours."""
    try:
        yield
    except Exception as error:
        name = type(error).__name__
        if any(part in name for part in LOST):
            raise PeerLostError(f"{doing}: the connection is lost ({error})") from error
        raise kind(f"{doing}: {name}: {error}") from error


def _exposed(tensor: torch.Tensor) -> object:
    """Return the bytes in a form that UCXX takes: numpy's for the host, ``__cuda_array_interface__`` for a device."""
    return tensor if tensor.is_cuda else tensor.numpy()
