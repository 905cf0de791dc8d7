"""Shares memory of a GPU between processes: what they allocate for that, and what torch has allocated.

Source: CUDA Runtime API, "Device Management" (cudaIpcGetMemHandle, cudaIpcOpenMemHandle): only memory that cudaMalloc
returned can be shared so, as a whole, and a handle
cannot be opened in the process that made it, nor twice in another. Ranges that were put together of other allocations
are handed over as open files.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from operator import attrgetter
from typing import Any

import torch

from ckpt_transport import RegistrationError, TransportError
from ckpt_transport.spi import GpuAllocation, PageRange, map_pages, page_ranges, page_server

PAGES = b"pages "
"""How a handle begins that is no cudaIpcMemHandle_t, but an encoded PageRange."""


def runtime() -> Any:
    """Return the CUDA runtime's functions; Any, because their stubs are made by a generator."""
    return importlib.import_module("cuda.bindings.runtime")


class Allocation:
    """A run of bytes from cudaMalloc.

    Attributes:
        tensor: the whole of it: shape ``(nbytes,)``, dtype uint8.
        handle: what another process opens it with.
    """

    def __init__(self, nbytes: int, device: torch.device) -> None:
        with torch.cuda.device(device):
            self._address = call("cudaMalloc", nbytes)
            try:
                self.handle = bytes(call("cudaIpcGetMemHandle", self._address).reserved)
            except TransportError:
                self.free()
                raise
        self.tensor = as_tensor(self._address, nbytes, device)

    def free(self) -> None:
        """Give the memory back. Idempotent; nothing may use ``tensor`` any more."""
        address, self._address = self._address, 0
        if address:
            call("cudaFree", address)


def exported(allocations: Sequence[GpuAllocation], device: torch.device) -> Iterator[tuple[int, bytes, int]]:
    """What other processes map to see these allocations of torch's: address, handle and bytes of each, ascending."""
    for in_pages, group in groupby(allocations, attrgetter("in_pages")):
        if in_pages:
            for pages in page_ranges(page_server(device), group):
                yield pages.address, PAGES + pages.encoded, pages.nbytes
        else:
            for each in group:
                yield each.address, _handle_of(each.number, each.address, device), each.nbytes


def is_handed_over(handle: bytes) -> bool:
    """Whether it is that of memory which is handed over as open files."""
    return handle.startswith(PAGES)


@lru_cache(65536)
def _handle_of(number: int, address: int, device: torch.device) -> bytes:
    """Kept, because the same memory is lent again and again; ``number`` tells it from what was there before."""
    with torch.cuda.device(device):
        return bytes(call("cudaIpcGetMemHandle", address).reserved)


@dataclass(slots=True)
class _Mapped:
    address: int
    close: Callable[[], object]
    users: int = 0


class Mappings:
    """Allocations of other processes that this process sees. CUDA opens a handle once in a process, for one device."""

    def __init__(self) -> None:
        self._mapped: dict[tuple[int, bytes], _Mapped] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._mapped)

    def take(self, handle: bytes, device: torch.device) -> int:
        """Map an allocation for kernels on ``device``; return where it is. Give it back as often as it was taken.

        Raises:
            RegistrationError: CUDA does not let this process map it.
            TransferError, PeerLostError: its owner has freed it, or has ended.
        """
        with self._lock:
            key = device.index, handle
            if key not in self._mapped:
                self._mapped[key] = _map_handed_over(handle, device) if is_handed_over(handle) else _map(handle, device)
            self._mapped[key].users += 1
            return self._mapped[key].address

    def give_back(self, handle: bytes, device: torch.device) -> None:
        """It is not used any more. Nothing that has it may be in use."""
        with self._lock:
            key = device.index, handle
            mapped = self._mapped[key]
            mapped.users -= 1
            if not mapped.users:
                del self._mapped[key]
                mapped.close()


def _map(handle: bytes, device: torch.device) -> _Mapped:
    cudart = runtime()
    opened = cudart.cudaIpcMemHandle_t()
    opened.reserved = handle
    with torch.cuda.device(device):
        address = int(call("cudaIpcOpenMemHandle", opened, cudart.cudaIpcMemLazyEnablePeerAccess))
    return _Mapped(address, partial(call, "cudaIpcCloseMemHandle", address))


def _map_handed_over(handle: bytes, device: torch.device) -> _Mapped:
    mapped = map_pages(PageRange.decoded(handle.removeprefix(PAGES)), device)
    return _Mapped(mapped.address, mapped.close)


def is_idle(device: torch.device, timeout: float) -> bool:
    """Wait until everything that this process has enqueued on ``device`` has ended; False when it has not in time.

    What is unmapped while a kernel reads it ends every further use of the device in this process.
    """
    waiting = threading.Thread(target=torch.cuda.synchronize, args=(device,), name="ckpt-transport-unmap", daemon=True)
    waiting.start()
    waiting.join(timeout)
    return not waiting.is_alive()


def as_tensor(address: int, nbytes: int, device: torch.device) -> torch.Tensor:
    """Return bytes at an address as a tensor, without a copy, on the device that reads them.

    That may be another one than the one that has them: kernels and copies then run where they are wanted.
    """
    storage = torch._C._construct_storage_from_data_pointer(address, device, nbytes)
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage, 0, (nbytes,), (1,))


def call(name: str, *arguments: Any) -> Any:
    """Make one call of the CUDA runtime, and return what it returns.

    Raises:
        RegistrationError: it failed; names the call and CUDA's reason.
    """
    cudart = runtime()
    status, *results = getattr(cudart, name)(*arguments)
    if status != cudart.cudaError_t.cudaSuccess:
        _, text = cudart.cudaGetErrorString(status)
        raise RegistrationError(f"{name}: {text.decode() if isinstance(text, bytes) else text}")
    return results[0] if results else None
