"""Kernels on one GPU read the memory of another, once a process has let them.

Source: CUDA Runtime API, "Peer Device Memory Access" (cudaDeviceEnablePeerAccess): it holds for what cudaMalloc has
returned and returns later, and for as long as the process lives.
"""

from __future__ import annotations

from functools import cache

import torch

from ckpt_transport.errors import RegistrationError
from ckpt_transport.memory.cuda_bindings import cuda_bindings


@cache
def let_read(device: torch.device, owner: torch.device) -> None:
    """Let kernels on ``device`` read memory of this process on another GPU, ``owner``.

    Raises:
        RegistrationError: they cannot, or cuda-bindings is missing.
    """
    if device == owner:
        return
    cudart = cuda_bindings("runtime")
    with torch.cuda.device(device):
        (status,) = cudart.cudaDeviceEnablePeerAccess(owner.index, 0)
    if status not in (cudart.cudaError_t.cudaSuccess, cudart.cudaError_t.cudaErrorPeerAccessAlreadyEnabled):
        raise RegistrationError(f"{device} cannot read the memory of {owner}: {status.name}")


@cache
def can_read(device: torch.device, owner: torch.device) -> bool:
    """Whether kernels on ``device`` can read such memory; they may from now on."""
    if device != owner and (device.type, owner.type) != ("cuda", "cuda"):
        return False
    try:
        let_read(device, owner)
    except RegistrationError:
        return False
    return True
