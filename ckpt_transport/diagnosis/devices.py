"""GPUs, whether they can read each other's memory, and RDMA devices."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ckpt_transport.diagnosis.finding import Finding, Severity
from ckpt_transport.memory.devices import may_have_devices, readable_from
from ckpt_transport.sizes import size
from ckpt_transport.transports.rdma.bandwidth import usable
from ckpt_transport.transports.rdma.devices import rdma_devices


def look() -> Iterator[Finding]:
    """Look at the GPUs that this process sees, and at the RDMA devices."""
    yield from _gpus()
    yield _rdma()


def _gpus() -> Iterator[Finding]:
    if not may_have_devices():
        yield Finding("GPUs", Severity.OK, "none; weights move through memory of the host")
        return
    if not torch.cuda.is_available():
        cure = "install the torch of the driver's CUDA version; start the container with --gpus all"
        yield Finding("GPUs", Severity.PROBLEM, "there are some, and torch cannot use them", cure)
        return
    count = torch.cuda.device_count()
    for index in range(count):
        device = torch.device("cuda", index)
        free, whole = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        yield Finding(f"GPU {index}", Severity.OK, f"{name}, {size(free)} of {size(whole)} are free")
        if missing := count - 1 - len(readable_from(device)):
            cure = "nvidia-smi topo -p2p r says why; weights go through memory of the host meanwhile"
            yield Finding(f"GPU {index}", Severity.WARNING, f"cannot read the memory of {missing} other GPUs", cure)


def _rdma() -> Finding:
    present = rdma_devices()
    if not present:
        return Finding("RDMA", Severity.OK, "no device; between hosts weights go over TCP")
    ready = usable(present)
    names = ", ".join(device.name for device in ready)
    if len(ready) == len(present):
        return Finding("RDMA", Severity.OK, names)
    closed = ", ".join(device.name for device in present if device not in ready)
    cure = "docker run --device=/dev/infiniband; in Kubernetes an RDMA device plugin"
    return Finding("RDMA", Severity.WARNING, f"this process may not open {closed}; usable: {names or 'none'}", cure)
