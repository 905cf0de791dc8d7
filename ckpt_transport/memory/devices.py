"""CUDA devices have names that mean the same in every process, whatever its ``CUDA_VISIBLE_DEVICES`` says."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch

HOST = ""
"""Name of no device: memory of the host."""


def may_have_devices() -> bool:
    """Whether this machine has an NVIDIA GPU and torch was built for one. Touches no device."""
    return torch.version.cuda is not None and os.environ.get("CUDA_VISIBLE_DEVICES") != "" and _has_nodes()


def _has_nodes() -> bool:
    """Whether the system has a GPU for this process. One may come later, as the first use of CUDA makes its node."""
    return any(True for name in ("nvidia[0-9]*", "dxg") for _ in Path("/dev").glob(name))


def visible_devices() -> tuple[str, ...]:
    """UUIDs of the devices this process can use, its current one first; none without CUDA. Starts CUDA."""
    if not torch.cuda.is_available():
        return ()
    current = torch.cuda.current_device()
    others = [index for index in range(torch.cuda.device_count()) if index != current]
    return tuple(name_of(torch.device("cuda", index)) for index in (current, *others))


def name_of(device: torch.device) -> str:
    """The UUID of a CUDA device; HOST for any other."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else HOST


@cache
def readable_from(device: torch.device) -> tuple[str, ...]:
    """UUIDs of the other devices whose memory kernels on this one can read, as far as this process sees them."""
    if device.type != "cuda":
        return ()
    here = torch.cuda.current_device() if device.index is None else device.index
    others = (torch.device("cuda", index) for index in range(torch.cuda.device_count()) if index != here)
    return tuple(name_of(other) for other in others if torch.cuda.can_device_access_peer(device, other))


def use_device(device: torch.device) -> None:
    """Have this thread use a CUDA device, with a context: libraries take the one that is current and make none.

    Of the host there is nothing to use.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.synchronize(device)


def device_of(name: str) -> torch.device:
    """Find the device of that name.

    Raises:
        LookupError: this process cannot use a device of that UUID.
    """
    if name == HOST:
        return torch.device("cpu")
    visible = visible_devices()
    if name not in visible:
        raise LookupError(f"GPU {name} is not visible here; visible: {', '.join(visible) or 'none'}")
    indices = (torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    return next(device for device in indices if name_of(device) == name)
