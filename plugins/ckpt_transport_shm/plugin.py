"""Implements the ``shm`` transport."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import torch

from ckpt_transport import RegistrationError, SharedMemoryError, TransportError
from ckpt_transport.spi import (
    SHM,
    UNREADABLE,
    Availability,
    Buffer,
    Control,
    Descriptor,
    DistantMemory,
    Endpoint,
    FanOut,
    Group,
    Lendable,
    MappedEndpoint,
    MemoryKind,
    Reach,
    Segment,
    SegmentName,
    Traits,
    Transport,
    prepared,
    sweep_leftovers,
)
from ckpt_transport_shm.private_memory import PREFIX, LastDescribed, PrivateMemory


class ShmEndpoint(MappedEndpoint):
    """Descriptors are segment names. Mappings are kept for as long as the owner keeps the segment's name.

    Tensors in private memory are described by their addresses. Nobody can map them, so they are read.
    """

    def __init__(self, group: Group, control: Control) -> None:
        super().__init__(group, control)
        self._attached: dict[Descriptor, Segment] = {}
        self._own: list[Segment] = []
        self._last_described = LastDescribed()

    def allocate(self, nbytes: int) -> Buffer:
        segment = Segment.create(nbytes)
        segment.reserve(0, nbytes)
        self._own.append(segment)
        return Buffer.of(segment)

    def _describe(self, buffer: Buffer) -> Descriptor:
        if buffer.segment is None:
            raise RegistrationError(
                f"'shm' can only send from shared memory, and this buffer is {buffer.kind} memory; allocate it here"
            )
        return msgspec.msgpack.encode(buffer.segment.name)

    def _describe_runs(self, memory: Lendable) -> Descriptor:
        if memory.kind is not MemoryKind.READABLE:
            return super()._describe_runs(memory)
        return self._last_described.describe(memory)

    def _connect(self, peers: Mapping[int, Sequence[Descriptor]]) -> None:
        described = {descriptor for descriptors in peers.values() for descriptor in descriptors}
        for descriptor, segment in self._attached.items():
            if descriptor in described and segment.was_cut():
                raise RegistrationError(f"somebody has cut {segment.path} short; register the version again")
        super()._connect(peers)

    def _map(self, sender: int, descriptor: Descriptor) -> torch.Tensor | DistantMemory:
        if descriptor.startswith(PREFIX):
            return self._find(sender, descriptor)
        try:
            segment = Segment.attach(msgspec.msgpack.decode(descriptor, type=prepared(SegmentName)))
        except (SharedMemoryError, *UNREADABLE) as error:
            raise RegistrationError(f"the shared memory of rank {sender} cannot be mapped: {error}") from error
        self._attached[descriptor] = segment
        mapped = Buffer.of(segment)
        if self.group.device:
            mapped.pin()
        return mapped.tensor

    def _find(self, sender: int, descriptor: Descriptor) -> DistantMemory:
        """Tensors in private memory of another process, which can be read."""
        try:
            return PrivateMemory.of(descriptor).found()
        except (TransportError, *UNREADABLE) as error:
            raise RegistrationError(
                f"the tensors of rank {sender} cannot be read where they lie: {error}; both processes must be of one "
                "user, and see each other in one container; else register a copy"
            ) from error

    def _unmap(self, descriptor: Descriptor) -> None:
        if descriptor in self._attached:
            self._attached.pop(descriptor).close()

    def _keep(self, descriptor: Descriptor) -> bool:
        if descriptor not in self._attached:
            return False
        return self._attached[descriptor].still_named() and not self._attached[descriptor].was_cut()

    def _shut(self) -> None:
        super()._shut()
        for segment in self._own:
            segment.close()


class ShmTransport(Transport):
    """Is the mapped transport over POSIX shared memory, between processes of one host."""

    name = "shm"
    traits = Traits(
        reach=Reach.HOST,
        sends_from=frozenset({MemoryKind.SHARED, MemoryKind.READABLE}),
        maps_memory=True,
        fan_out=FanOut.CONSTANT,
        bandwidth=40e9,
        latency=50e-6,
    )

    @classmethod
    def probe(cls) -> Availability:
        if not SHM.is_dir():
            return Availability(False, "this system has no /dev/shm", "use the 'gloo' transport")
        return Availability(True)

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        sweep_leftovers()
        control.exchange(b"", timeout)
        return ShmEndpoint(group, control)
