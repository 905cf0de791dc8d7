"""Allocates memory of a GPU that other processes can map, whatever torch's allocator is set to.

Source: CUDA Runtime API, "Device Management" (cudaIpcGetMemHandle, cudaIpcOpenMemHandle): only memory that cudaMalloc
returned can be shared, as a whole, and a handle cannot be opened in the process that made it.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from ckpt_transport import RegistrationError, TransportError


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


class OpenedAllocation:
    """Another process's :class:`Allocation`, in this one."""

    def __init__(self, handle: bytes, nbytes: int, device: torch.device) -> None:
        cudart = runtime()
        opened = cudart.cudaIpcMemHandle_t()
        opened.reserved = handle
        with torch.cuda.device(device):
            self._address = call("cudaIpcOpenMemHandle", opened, cudart.cudaIpcMemLazyEnablePeerAccess)
        self.tensor = as_tensor(self._address, nbytes, device)

    def close(self) -> None:
        """Unmap it. Idempotent."""
        address, self._address = self._address, 0
        if address:
            call("cudaIpcCloseMemHandle", address)


class _Bytes:
    """Tells torch where bytes are: https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html, version 3."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


def as_tensor(address: int, nbytes: int, device: torch.device) -> torch.Tensor:
    """Return bytes of a device as a tensor, without a copy."""
    return torch.as_tensor(_Bytes(address, nbytes), device=device)


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
