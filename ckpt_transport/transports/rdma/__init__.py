"""RDMA devices: which there are, which are near, and what a transport over them can count on. For plugins."""

from ckpt_transport.transports.rdma.bandwidth import expected_bandwidth
from ckpt_transport.transports.rdma.devices import (
    Locality,
    RdmaDevice,
    distance,
    locality_of_cpus,
    locality_of_pci,
    nearest,
    rdma_devices,
)
from ckpt_transport.transports.rdma.ucx import ucx_devices

__all__ = [
    "Locality",
    "RdmaDevice",
    "distance",
    "expected_bandwidth",
    "locality_of_cpus",
    "locality_of_pci",
    "nearest",
    "rdma_devices",
    "ucx_devices",
]
