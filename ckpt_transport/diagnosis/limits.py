"""How many files a process may open, and how much memory it may lock and take."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

from ckpt_transport.diagnosis.finding import Finding, Severity
from ckpt_transport.memory.free import free_on_host
from ckpt_transport.sizes import size
from ckpt_transport.transports.rdma.devices import rdma_devices

FILES_PER_MEMBER = 7
"""Descriptors that a coordinator was seen to take for each member, over gloo; over shm it takes 6."""
ENOUGH_FILES = 4096
ENOUGH_LOCKED = 1 << 30


def look() -> Iterator[Finding]:
    """Look at the limits of this process."""
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield locked_memory(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], has_rdma=bool(rdma_devices()))
    cores = len(os.sched_getaffinity(0))
    yield Finding("memory", Severity.OK, f"{size(free_on_host())} can still be taken; {cores} cores")


def open_files(limit: int) -> Finding:
    """Judge the soft limit of open files."""
    if limit == resource.RLIM_INFINITY or limit >= ENOUGH_FILES:
        return Finding("open files", Severity.OK, "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}")
    said = f"{limit:,}, enough for an update of about {limit // FILES_PER_MEMBER:,} members"
    return Finding("open files", Severity.WARNING, said, "ulimit -n 65536, or LimitNOFILE=65536 in the service's unit")


def locked_memory(limit: int, *, has_rdma: bool) -> Finding:
    """Judge the soft limit of locked memory, which RDMA devices need and CUDA does not."""
    if limit == resource.RLIM_INFINITY:
        return Finding("locked memory", Severity.OK, "unlimited")
    said = f"{size(limit)} may be locked"
    if not has_rdma:
        return Finding("locked memory", Severity.OK, f"{said}; only RDMA devices need more, and there are none")
    if limit >= ENOUGH_LOCKED:
        return Finding("locked memory", Severity.NOTE, f"{said}; larger checkpoints cannot be sent over RDMA")
    cure = "ulimit -l unlimited; docker run --ulimit memlock=-1; in Kubernetes the capability IPC_LOCK"
    return Finding("locked memory", Severity.WARNING, f"{said}, too little to send a checkpoint over RDMA", cure)
