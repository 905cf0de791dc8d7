"""Probes of GPUs: to and from page-locked host memory, within a GPU, and between two that map each other's memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ckpt_transport.memory import may_have_devices, name_of, pin
from ckpt_transport.rates.timing import fastest
from ckpt_transport.rates.values import HostLink, LinkKind

HOST_BYTES = 64 << 20
DEVICE_BYTES = 128 << 20
"""More than the cache of a GPU holds."""
COPIES = 8
"""So many are enqueued at once, so that launching them hides behind the first."""

Ends = tuple[torch.device, torch.device]
HOST = torch.device("cpu")


def device_links() -> Iterator[tuple[HostLink, Ends]]:
    """Every link of a GPU that this process can use, and the devices at its ends. Starts CUDA."""
    if not (may_have_devices() and torch.cuda.is_available()):
        return
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    names = {gpu: name_of(gpu) for gpu in gpus}
    for gpu, name in names.items():
        yield HostLink(LinkKind.TO_DEVICE, target=name), (HOST, gpu)
        yield HostLink(LinkKind.FROM_DEVICE, source=name), (gpu, HOST)
        yield HostLink(LinkKind.DEVICE, name, name), (gpu, gpu)
    for source in gpus:
        for target in gpus:
            if source != target and torch.cuda.can_device_access_peer(target, source):
                yield HostLink(LinkKind.PEER, names[source], names[target]), (source, target)


def between(ends: Ends) -> float:
    """Bytes per second of copies from one device to the other.

    Raises:
        RuntimeError: CUDA refuses, as when a GPU has no memory left.
    """
    nbytes = HOST_BYTES if HOST in ends else DEVICE_BYTES
    source, target = (_memory(device, nbytes) for device in ends)
    gpu = next(device for device in ends if device != HOST)
    with torch.cuda.device(gpu):
        return COPIES * nbytes / fastest(lambda: _copies(target, source))


def _copies(target: torch.Tensor, source: torch.Tensor) -> float:
    """Seconds that the device takes for some copies."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    began.record()
    for _ in range(COPIES):
        target.copy_(source, non_blocking=True)
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3


def _memory(device: torch.device, nbytes: int) -> torch.Tensor:
    """Memory of a device; of the host, page-locked."""
    memory = torch.ones(nbytes, dtype=torch.uint8, device=device)
    if device == HOST:
        pin(memory)
    return memory
