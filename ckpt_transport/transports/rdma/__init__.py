"""RDMA devices: which there are, which are near, and what a transport over them can count on. For plugins."""

from ckpt_transport.transports.rdma.bandwidth import expected_bandwidth
from ckpt_transport.transports.rdma.devices import (
    Distance,
    Place,
    RdmaDevice,
    distance,
    nearest,
    place_of_cpus,
    place_of_pci,
    rdma_devices,
)
from ckpt_transport.transports.rdma.ucx import ucx_devices

__all__ = [
    "Distance",
    "Place",
    "RdmaDevice",
    "distance",
    "expected_bandwidth",
    "nearest",
    "place_of_cpus",
    "place_of_pci",
    "rdma_devices",
    "ucx_devices",
]
