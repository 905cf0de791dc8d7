"""A transport that maps what lies apart, in memory of the host, between the threads of one process."""

from __future__ import annotations

import itertools

import torch

from ckpt_transport.memory import DistantMemory, Lendable, MemoryKind, Runs
from ckpt_transport.transports.interface import Control, Descriptor, Endpoint, FanOut, Group, Reach, Traits
from ckpt_transport_shm import ShmTransport
from ckpt_transport_shm.plugin import ShmEndpoint

_shown: dict[Descriptor, Runs] = {}
_keys = itertools.count()


class ApartEndpoint(ShmEndpoint):
    """Shows tensors that lie apart where they lie, and else what its base does."""

    def _describe_runs(self, memory: Lendable) -> Descriptor:
        descriptor = b"apart %d" % next(_keys)
        _shown[descriptor] = memory.runs
        return descriptor

    def _map(self, sender: int, descriptor: Descriptor) -> torch.Tensor | Runs | DistantMemory:  # type: ignore[override]
        return _shown[descriptor] if descriptor in _shown else super()._map(sender, descriptor)

    def _unmap(self, descriptor: Descriptor) -> None:
        if descriptor not in _shown:
            super()._unmap(descriptor)

    def _keep(self, descriptor: Descriptor) -> bool:
        return descriptor not in _shown and super()._keep(descriptor)


class ApartTransport(ShmTransport):
    """Maps what stands, on the host, for tensors that were lent on a GPU."""

    name = "apart"
    traits = Traits(
        reach=Reach.HOST,
        sends_from=frozenset({MemoryKind.SHARED, MemoryKind.EXPORTED}),
        maps_memory=True,
        fan_out=FanOut.CONSTANT,
        bandwidth=1e12,
        latency=50e-6,
    )

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        control.exchange(b"", timeout)
        return ApartEndpoint(group, control)


class _KeepsTheFirst(ApartEndpoint):
    def _map(self, sender: int, descriptor: Descriptor) -> torch.Tensor | Runs | DistantMemory:  # type: ignore[override]
        mapped = super()._map(sender, descriptor)
        return (
            mapped
            if isinstance(mapped, (torch.Tensor, DistantMemory))
            else [mapped[0]._replace(at=run.at) for run in mapped]
        )


class KeepsTheFirstRun(ApartTransport):
    """All runs are taken for the first one."""

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        control.exchange(b"", timeout)
        return _KeepsTheFirst(group, control)
