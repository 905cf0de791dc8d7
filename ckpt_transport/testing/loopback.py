"""The reference transport keeps everything inside one process, with as little code as the interface allows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from ckpt_transport.errors import RegistrationError, TransferError
from ckpt_transport.memory import Buffer, MemoryKind
from ckpt_transport.transports import OneSidedEndpoint, Poll, ReadSpan
from ckpt_transport.transports.interface import (
    Availability,
    Control,
    Descriptor,
    Endpoint,
    Group,
    Reach,
    Traits,
    Transport,
)

_memory: dict[Descriptor, torch.Tensor] = {}
"""All registered memory of this process. A descriptor is a key, never used twice."""
_keys = itertools.count()


class LoopbackEndpoint(OneSidedEndpoint):
    """Reads by copying from another endpoint of the same process."""

    def __init__(self, group: Group, control: Control) -> None:
        super().__init__(group, control)
        self._own: set[Descriptor] = set()

    def _describe(self, buffer: Buffer) -> Descriptor:
        if buffer.kind is MemoryKind.CUDA:
            raise RegistrationError("'loopback' moves host memory only")
        descriptor = b"%d" % next(_keys)
        _memory[descriptor] = buffer.tensor
        self._own.add(descriptor)
        return descriptor

    def _undescribe(self, buffer: Buffer, descriptor: Descriptor) -> None:
        _memory.pop(descriptor, None)

    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        for span in spans:
            source = _memory.get(span.descriptor)
            if source is None:
                raise TransferError(f"rank {sender} has closed the region that this transfer reads")
            span.into.copy_(source[span.offset : span.offset + span.into.numel()])
        return lambda: True

    def _shut(self) -> None:
        for descriptor in self._own:
            _memory.pop(descriptor, None)


class LoopbackTransport(Transport):
    """Moves bytes between endpoints of one process. For tests and for reading.

    Not registered as an entry point: hand the class to whatever takes a transport.
    """

    name = "loopback"
    traits = Traits(
        reach=Reach.HOST,
        sends_from=frozenset({MemoryKind.PRIVATE, MemoryKind.SHARED}),
        bandwidth=5e9,
        latency=100e-6,
    )

    @classmethod
    def probe(cls) -> Availability:
        return Availability(True)

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        return LoopbackEndpoint(group, control)
