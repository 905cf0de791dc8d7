"""Page-locked host memory is read by a GPU at full speed, where it lies."""

from __future__ import annotations

import logging
import weakref
from typing import Any

import torch

logger = logging.getLogger(__name__)

READ_ONLY = 0x08
"""``cudaHostRegisterReadOnly`` of the CUDA runtime: the mapping may not be written to."""

_pins: dict[int, object] = {}
"""By the id of the tensor, what will undo it."""


def pin(tensor: torch.Tensor, *, flags: int = 0) -> bool:
    """Page-lock the memory of ``tensor`` for as long as that tensor object lives; return whether that worked.

    Memory that cannot be pinned still works, but slower. Idempotent. Starts CUDA.
    """
    if id(tensor) in _pins:
        return True
    address = tensor.data_ptr()
    if not register(address, tensor.nbytes, flags):
        return False
    _pins[id(tensor)] = weakref.finalize(tensor, _unpin, id(tensor), address)
    return True


def pinned(tensor: torch.Tensor) -> bool:
    """Whether :func:`pin` has page-locked this tensor."""
    return id(tensor) in _pins


def _unpin(key: int, address: int) -> None:
    _pins.pop(key, None)
    unregister(address)


def register(address: int, nbytes: int, flags: int = 0) -> bool:
    """Page-lock memory until :func:`unregister`; return whether that worked."""
    status = int(_cudart().cudaHostRegister(address, nbytes, flags))
    if status:
        logger.warning("%s bytes of host memory could not be pinned (CUDA error %d)", f"{nbytes:,}", status)
    return status == 0


def unregister(address: int) -> None:
    """Let go of what :func:`register` has page-locked."""
    _cudart().cudaHostUnregister(address)


def _cudart() -> Any:
    """The part of the CUDA runtime that torch shows; without type stubs."""
    cudart: Any = torch.cuda.cudart  # type: ignore[no-untyped-call, unused-ignore]
    return cudart()
