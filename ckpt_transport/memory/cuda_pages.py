"""Allocations of a GPU are handed to other processes as open files, and mapped there one behind the other.

Source: CUDA Driver API, "Virtual Memory Management": cuMemExportToShareableHandle, cuMemImportFromShareableHandle,
cuMemAddressReserve, cuMemMap and cuMemSetAccess. A mapping and an open file each keep the memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from ckpt_transport.errors import CkptTransportError, RegistrationError
from ckpt_transport.memory.cuda_bindings import call_driver, cuda_bindings
from ckpt_transport.memory.exported import allocation_at, number_at
from ckpt_transport.memory.open_files import OpenFileServer
from ckpt_transport.memory.page_range import MappedPages, PageRange, page_ranges

_MARKS = 0x5A, 0xA5
"""What two allocations are filled with to be told apart."""


class CudaPages:
    """Puts ranges together for kernels of one GPU; a :class:`~ckpt_transport.memory.page_range.PageDriver`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def reserve(self, nbytes: int) -> int:
        return int(call_driver("cuMemAddressReserve", nbytes, 0, 0, 0))

    def map(self, address: int, nbytes: int, file: int) -> None:
        self._map(address, nbytes, call_driver("cuMemImportFromShareableHandle", file, _as_file()))

    def let_use(self, address: int, nbytes: int) -> None:
        driver = cuda_bindings("driver")
        access = driver.CUmemAccessDesc()
        access.location = self._location()
        access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        call_driver("cuMemSetAccess", address, nbytes, [access], 1)

    def unmap(self, address: int, nbytes: int) -> None:
        call_driver("cuMemUnmap", address, nbytes)

    def release(self, address: int, nbytes: int) -> None:
        call_driver("cuMemAddressFree", address, nbytes)

    def granularity(self) -> int:
        """The least that can be allocated, in bytes."""
        flags = cuda_bindings("driver").CUmemAllocationGranularity_flags
        least = flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
        return int(call_driver("cuMemGetAllocationGranularity", self._properties(), least))

    def allocate(self, address: int, nbytes: int) -> None:
        """Have new memory at these addresses, until they are unmapped."""
        self._map(address, nbytes, call_driver("cuMemCreate", nbytes, self._properties(), 0))

    def _map(self, address: int, nbytes: int, handle: Any) -> None:
        try:
            call_driver("cuMemMap", address, nbytes, 0, handle, 0)
        finally:
            call_driver("cuMemRelease", handle)

    def _properties(self) -> Any:
        driver = cuda_bindings("driver")
        wanted = driver.CUmemAllocationProp()
        wanted.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        wanted.requestedHandleTypes = _as_file()
        wanted.location = self._location()
        return wanted

    def _location(self) -> Any:
        driver = cuda_bindings("driver")
        location = driver.CUmemLocation()
        location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        location.id = self._device.index
        return location


def exported_as_file(address: int, number: int) -> int:
    """An open file that stands for an allocation of this process.

    Args:
        address: in the allocation.
        number: that it had when it was lent.

    Raises:
        RegistrationError: it was freed, or CUDA does not export it.
    """
    handle = call_driver("cuMemRetainAllocationHandle", address)
    try:
        if number_at(address) != number:
            raise RegistrationError("it was freed; tensors that are lent must not be freed before the update has ended")
        file = int(call_driver("cuMemExportToShareableHandle", handle, _as_file(), 0))
    finally:
        call_driver("cuMemRelease", handle)
    os.set_inheritable(file, False)
    return file


def _as_file() -> Any:
    return cuda_bindings("driver").CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


_servers: dict[int, OpenFileServer] = {}
"""Those of this process that hand over its memory, by the number of the GPU."""
_proven: set[int] = set()
"""Numbers of the GPUs on which handing over was tried, and went well."""
_refused: list[str] = []
"""Why this process could not map memory that it was handed."""
_lock = threading.Lock()


def page_server(device: torch.device) -> str:
    """The name of the server of this process that hands over its memory of that GPU."""
    with _lock:
        if device.index not in _servers:
            _servers[device.index] = OpenFileServer(partial(_exported_from, device))
        return _servers[device.index].name


def _exported_from(device: torch.device, address: int, number: int) -> int:
    with _current(device):
        return exported_as_file(address, number)


def _forget_parent() -> None:
    for server in _servers.values():
        server.leave_to_parent()
    _servers.clear()


os.register_at_fork(after_in_child=_forget_parent)


def map_pages(pages: PageRange, device: torch.device) -> MappedPages:
    """Map memory of another process for kernels on ``device``.

    Raises:
        RegistrationError: it cannot be mapped; says why, and so does :func:`why_no_pages` from now on.
        TransferError, PeerLostError: its owner has freed it, or has ended.
    """
    try:
        with _current(device):
            return MappedPages(pages, CudaPages(device))
    except RegistrationError as error:
        _refused.append(str(error))
        raise


def why_no_pages(device: torch.device) -> str:
    """Why this process neither hands over nor maps allocations on a GPU as open files, in words; empty where it does.

    It is tried once, with allocations of its own.
    """
    if _refused:
        return _refused[0]
    if device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if device.index not in _proven:
        try:
            with _current(device):
                _try_out(device)
        except (CkptTransportError, AttributeError, OSError, TypeError) as error:
            return f"memory of {device} could not be handed over as an open file: {error}"
        _proven.add(device.index)
    return ""


@contextlib.contextmanager
def _current(device: torch.device) -> Iterator[None]:
    """Have the context of a GPU in this thread: the driver takes the one that is current and makes none.

    What is called meanwhile does not end a capture of a CUDA graph in another thread.
    """
    relaxed = cuda_bindings("driver").CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    with torch.cuda.device(device):
        mode = call_driver("cuThreadExchangeStreamCaptureMode", relaxed)
        try:
            cuda_bindings("runtime").cudaFree(0)
            yield
        finally:
            call_driver("cuThreadExchangeStreamCaptureMode", mode)


def _try_out(device: torch.device) -> None:
    """Hand two allocations over to this process itself.

    Raises:
        RegistrationError: CUDA does not tell them apart, or what is seen is not what they hold.
    """
    with contextlib.ExitStack() as undo:
        server = undo.enter_context(OpenFileServer(partial(_exported_from, device)))
        cuda = CudaPages(device)
        nbytes = cuda.granularity()
        first = cuda.reserve(2 * nbytes)
        undo.callback(cuda.release, first, 2 * nbytes)
        second = first + nbytes
        cuda.allocate(first, nbytes)
        undo.callback(cuda.unmap, first, nbytes)
        cuda.allocate(second, nbytes)
        with contextlib.ExitStack() as replaced:
            replaced.callback(cuda.unmap, second, nbytes)
            cuda.let_use(first, 2 * nbytes)
            for address, mark in zip((first, second), _MARKS, strict=True):
                call_driver("cuMemsetD8", address, mark, nbytes)
            found = [allocation_at(first + 1), allocation_at(second + nbytes - 1)]
            if [(each.address, each.nbytes, each.in_pages) for each in found] != [
                (first, nbytes, True),
                (second, nbytes, True),
            ] or found[0].number == found[1].number:
                raise RegistrationError(f"CUDA does not tell allocations of {nbytes:,} bytes apart: {found}")
            (pages,) = page_ranges(server.name, found)
            seen = MappedPages(pages, cuda)
            undo.callback(seen.close)
            ends = [seen.address, seen.address + nbytes - 1, seen.address + nbytes]
            if [_byte_at(address) for address in ends] != [_MARKS[0], _MARKS[0], _MARKS[1]]:
                raise RegistrationError("what is mapped is not what was handed over")
        cuda.allocate(second, nbytes)
        undo.callback(cuda.unmap, second, nbytes)
        cuda.let_use(second, nbytes)
        if number_at(second) == found[1].number:
            raise RegistrationError("CUDA does not tell an allocation from one that was there before")


def _byte_at(address: int) -> int:
    found = ctypes.create_string_buffer(1)
    call_driver("cuMemcpyDtoH", ctypes.addressof(found), address, 1)
    return found.raw[0]
