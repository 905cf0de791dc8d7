"""Elements of a delta are exchanged with what is served, all of them or none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from ckpt_transport.deltas.device_exchange import DeviceExchange
from ckpt_transport.deltas.host_exchange import HostExchange
from ckpt_transport.memory import has_copy_tables

ElementExchange = DeviceExchange | HostExchange


def why_no_exchange(device: torch.device) -> str:
    """Why elements cannot be exchanged on ``device``; empty where they can."""
    if device.type == "cpu" or has_copy_tables(device):
        return ""
    return f"elements are exchanged on {device.type} by kernels of Triton, which is not installed"


def exchange_each(exchanges: Sequence[ElementExchange], device: torch.device) -> None:
    """Exchange the elements of each, all on ``device``.

    What is enqueued there before is done first, and all is done when it returns; an interrupt is not kept away.
    """
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        _synchronize(device)
        for exchange in exchanges:
            exchange.exchange()
        _synchronize(device)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
