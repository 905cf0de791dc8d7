"""What the network devices of a host bring together, as they say themselves."""

from __future__ import annotations

from pathlib import Path

from ckpt_transport.transports.rdma.bandwidth import DEV, usable
from ckpt_transport.transports.rdma.devices import SYS, rdma_devices


def network_rate(sys: Path = SYS, dev: Path = DEV) -> float:
    """Bytes per second in each direction: of RDMA devices that this process may use, else of Ethernet; 0 when unknown.

    A virtual interface is none: its bytes leave by another.
    """
    return sum(device.rate for device in usable(rdma_devices(sys), dev)) or sum(
        _rate(interface) for interface in sorted((sys / "class" / "net").glob("*")) if (interface / "device").exists()
    )


def _rate(interface: Path) -> float:
    """Of an interface that is up: the kernel writes millions of bits per second, and -1 when it does not know."""
    try:
        return max(int((interface / "speed").read_text(encoding="ascii")), 0) * 1e6 / 8
    except (OSError, ValueError):
        return 0.0
