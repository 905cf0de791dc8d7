"""What a transport over RDMA can count on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ckpt_transport.transports.rdma.devices import RdmaDevice

DEV = Path("/dev")
SHARE = 0.5
"""Of the rate of a port. A cautious guess: it has not been measured."""
MOST = 12e9
"""Bytes per second, until more is measured; less than what is said of NCCL, which uses the same devices."""


def expected_bandwidth(devices: Iterable[RdmaDevice], dev: Path = DEV) -> float:
    """Bytes per second between two hosts over any of ``devices``; 0 when this process may use none of them.

    In a container sysfs often shows devices of the host whose files are not there.
    """
    rates = [device.rate for device in usable(devices, dev)]
    return min(SHARE * min(rates), MOST) if rates else 0.0


def usable(devices: Iterable[RdmaDevice], dev: Path = DEV) -> tuple[RdmaDevice, ...]:
    """Those of ``devices`` whose files this process may open."""
    return tuple(device for device in devices if device.verbs and _may_use(dev / "infiniband" / device.verbs))


def _may_use(file: Path) -> bool:
    return os.access(file, os.R_OK | os.W_OK)
