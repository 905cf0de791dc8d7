"""Implements the ``nixl`` transport."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import msgspec
import torch

from ckpt_transport import RegistrationError, TransferError
from ckpt_transport.spi import (
    CONTIGUOUS,
    UNREADABLE,
    Availability,
    Buffer,
    Calls,
    Control,
    Descriptor,
    Endpoint,
    Group,
    OneSidedEndpoint,
    Poll,
    Reach,
    ReadSpan,
    Traits,
    Transport,
    expected_bandwidth,
    prepared,
    ucx_devices,
    use_device,
)
from ckpt_transport_nixl.agent import Agent, NixlMemory, package
from ckpt_transport_nixl.agents import Agents

READS_AT_ONCE = 2
"""So that the next read is under way when one ends; into host memory each by an agent of its own."""
NO_DEVICE = -1
"""What ``torch.cuda.device`` takes for "leave it as it is"."""


class NixlDescriptor(msgspec.Struct, frozen=True, array_like=True):
    """What a descriptor says.

    Attributes:
        memory: where the region is in its process.
        metadata: what NIXL needs to reach it.
    """

    memory: NixlMemory
    metadata: bytes


class NixlEndpoint(OneSidedEndpoint):
    """Has agents of its own. Reads run on threads of its own, as NIXL reads from the same host while it posts."""

    poll_seconds = 0.02

    def __init__(self, group: Group, control: Control, timeout: float) -> None:
        super().__init__(group, control)
        count = READS_AT_ONCE if self.device.type == "cpu" else 1
        self._agents = Agents(self._agent, count, READS_AT_ONCE // count)
        self._reads = Calls("ckpt-transport-nixl", control, READS_AT_ONCE, partial(use_device, self.device))
        self._lent: dict[int, dict[Descriptor, NixlMemory]] = {}
        self._names: dict[int, str] = {}
        self._meet_members(b"", timeout)

    def _agent(self, number: int) -> Agent:
        with torch.cuda.device(self.device if self.device.type == "cuda" else NO_DEVICE):
            use_device(self.device)
            return Agent(f"{self.group.route}/{self.group.rank}/{number}")

    def allocate(self, nbytes: int) -> Buffer:
        """Memory of the GPU that this rank uses on the route, else of the host."""
        return Buffer(torch.empty(nbytes, dtype=torch.uint8, device=self.device))

    def _describe(self, buffer: Buffer) -> Descriptor:
        memory = _memory(buffer.tensor)
        return msgspec.msgpack.encode(NixlDescriptor(memory, self._agents.register(memory)))

    def _undescribe(self, buffer: Buffer, descriptor: Descriptor) -> None:
        self._agents.unregister(_memory(buffer.tensor))

    def _connect(self, peers: Mapping[int, Sequence[Descriptor]]) -> None:
        super()._connect(peers)
        for sender in [known for known in self._lent if known not in peers]:
            self._leave(sender)
        for sender, descriptors in peers.items():
            if sender == self.group.rank:
                continue
            if not set(self._lent.get(sender, ())).issubset(descriptors):
                self._leave(sender)
            self._meet(sender, descriptors)

    def _meet(self, sender: int, descriptors: Sequence[Descriptor]) -> None:
        lent = self._lent.setdefault(sender, {})
        for descriptor in descriptors:
            if descriptor in lent:
                continue
            try:
                described = msgspec.msgpack.decode(descriptor, type=prepared(NixlDescriptor))
            except UNREADABLE as error:
                raise RegistrationError(f"rank {sender} described memory in another way: {error}") from error
            self._names[sender] = self._agents.load(described.metadata)
            lent[descriptor] = described.memory

    def _leave(self, sender: int) -> None:
        self._lent.pop(sender, None)
        name = self._names.pop(sender, None)
        if name is not None:
            self._agents.each_does(lambda agent: agent.forget(name))

    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        reads = [self._started(sender, spans, from_cuda) for from_cuda in (False, True)]
        return lambda: all(read() for read in reads)

    def _started(self, sender: int, spans: Sequence[ReadSpan], from_cuda: bool) -> Poll:
        """A read of the spans that are in one kind of memory at the sender: NIXL wants one kind on each side."""
        chosen = [span for span in spans if self._lent[sender][span.descriptor].cuda == from_cuda]
        if not chosen:
            return lambda: True
        return self._reads.start(
            partial(
                self._agents.read,
                self._names[sender],
                [_memory(span.into) for span in chosen],
                [self._remote(sender, span) for span in chosen],
            )
        )

    def _remote(self, sender: int, span: ReadSpan) -> NixlMemory:
        region, nbytes = self._lent[sender][span.descriptor], span.into.numel()
        if span.offset < 0 or span.offset + nbytes > region.nbytes:
            raise TransferError(
                f"rank {sender} registered {region.nbytes:,} bytes, and {span.offset + nbytes:,} are to be read"
            )
        return NixlMemory(region.address + span.offset, nbytes, region.device, region.cuda)

    def _shut(self) -> None:
        self._agents.each_does(Agent.stop)
        self._reads.close()
        self._agents.close()


class NixlTransport(Transport):
    """Is the one-sided transport over NIXL and UCX: RDMA where there is some, else shared memory or TCP."""

    name = "nixl"
    traits = Traits(
        reach=Reach.NETWORK,
        sends_from=CONTIGUOUS,
        bandwidth=0.7e9,
        latency=300e-6,
    )

    @classmethod
    def probe(cls) -> Availability:
        if package() is None:
            return Availability(False, "NIXL is not installed", "pip install 'ckpt-transport[nixl]'")
        return Availability(True)

    def expected_bandwidth(self) -> float:
        return max(self.traits.bandwidth, expected_bandwidth(ucx_devices()))

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        return NixlEndpoint(group, control, timeout)


def _memory(tensor: torch.Tensor) -> NixlMemory:
    return NixlMemory(tensor.data_ptr(), tensor.numel(), max(tensor.get_device(), 0), tensor.is_cuda)
