"""Implements the ``cuda_ipc`` transport."""

from __future__ import annotations

import contextlib
import os
import secrets
from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence

import msgspec

from ckpt_transport import PeerLostError, RegistrationError, TransferError, TransportError
from ckpt_transport.spi import (
    UNREADABLE,
    Availability,
    Buffer,
    Control,
    Descriptor,
    Endpoint,
    FanOut,
    Group,
    Lendable,
    MappedEndpoint,
    MemoryKind,
    MemoryRun,
    Reach,
    RunPlace,
    Runs,
    Traits,
    Transport,
    device_of,
    find_allocations,
    let_read,
    may_have_devices,
    places_of,
    prepared,
)
from ckpt_transport_cuda_ipc.memory import (
    Allocation,
    Mappings,
    as_tensor,
    exported,
    is_handed_over,
    is_idle,
    runtime,
)

_TOKEN = secrets.token_hex(8)


def this_process() -> str:
    """Tells this process from others, and from those that it was forked from, whose memory it has not mapped."""
    return f"{_TOKEN}-{os.getpid()}"


class Exported(msgspec.Struct, frozen=True, array_like=True):
    """What a descriptor says of one allocation.

    Attributes:
        address: where it is in the process that has it.
        handle: cudaIpcMemHandle_t, 64 bytes; or which allocations are handed over as open files.
        nbytes: its size.
    """

    address: int
    handle: bytes
    nbytes: int


class Shared(msgspec.Struct, frozen=True, array_like=True):
    """What a descriptor says.

    Attributes:
        process: who has the memory.
        device: the UUID of the GPU that it is on.
        allocations: what is to be mapped.
        runs: (where it starts in the region, index of the allocation, where it starts in that, length) each.
    """

    process: str
    device: str
    allocations: tuple[Exported, ...]
    runs: tuple[tuple[int, int, int, int], ...]


_here: dict[int, Allocation] = {}
"""Slots of this process by address: every route lends any of them."""
mappings = Mappings()
IDLE_SECONDS = 5.0
"""Longest wait for a device to have read what it maps. One that does not end keeps the mapping."""


class CudaIpcEndpoint(MappedEndpoint):
    """A sender's slots are plain CUDA memory; what is sent from them must be complete on the device.

    Messages order the two processes: READY follows the end of a fill, and ACK the end of an apply. So neither waits for
    the other on the device, and a ring of some slots hides how long messages take.
    """

    def __init__(self, group: Group, control: Control) -> None:
        super().__init__(group, control)
        self._own: list[Allocation] = []
        self._opened: dict[Descriptor, Sequence[bytes]] = {}
        self._unused: list[bytes] = []
        self._lent: tuple[Hashable, Descriptor] = None, b""
        """What was described last of memory that lies apart: a trainer lends the same at each step."""

    def allocate(self, nbytes: int) -> Buffer:
        allocation = Allocation(nbytes, self.device)
        self._own.append(allocation)
        _here[allocation.tensor.data_ptr()] = allocation
        return Buffer(allocation.tensor)

    def _describe(self, buffer: Buffer) -> Descriptor:
        address, nbytes = buffer.tensor.data_ptr(), buffer.nbytes
        if address not in _here:
            raise RegistrationError(f"'cuda_ipc' can only send from memory that it allocated, not {buffer.kind} memory")
        return self._shared([Exported(address, _here[address].handle, nbytes)], [(0, 0, 0, nbytes)])

    def _describe_runs(self, memory: Lendable) -> Descriptor:
        place, described = self._lent
        if place != memory.place:
            described = self._describe_places([place for place in places_of(memory.runs) if place.nbytes])
            self._lent = memory.place, described
        return described

    def _describe_places(self, places: Sequence[RunPlace]) -> Descriptor:
        allocations = find_allocations({self.device}, [(place.address, place.nbytes) for place in places])
        described = [Exported(*each) for each in exported(allocations, self.device)]
        starts = [each.address for each in described]
        runs = []
        for at, address, nbytes in places:
            number = bisect_right(starts, address) - 1
            runs.append((at, number, address - starts[number], nbytes))
        return self._shared(described, runs)

    def _shared(self, allocations: Sequence[Exported], runs: Sequence[tuple[int, int, int, int]]) -> Descriptor:
        return msgspec.msgpack.encode(Shared(this_process(), self.group.device, tuple(allocations), tuple(runs)))

    def _connect(self, peers: Mapping[int, Sequence[Descriptor]]) -> None:
        """What is described in another way stays mapped meanwhile: a trainer lends much the same at each step."""
        try:
            super()._connect(peers)
        finally:
            self._close_unused()

    def _map(self, sender: int, descriptor: Descriptor) -> Runs:
        try:
            shared = msgspec.msgpack.decode(descriptor, type=prepared(Shared))
            addresses = self._open(descriptor, shared)
            whole = [
                as_tensor(address, allocation.nbytes, self.device)
                for address, allocation in zip(addresses, shared.allocations, strict=True)
            ]
            return tuple(MemoryRun(at, whole[number][start : start + size]) for at, number, start, size in shared.runs)
        except (TransportError, LookupError, *UNREADABLE) as error:
            gone = isinstance(error, TransferError | PeerLostError)
            cure = "" if gone else "; both processes must be of one user, and see that GPU"
            raise RegistrationError(f"the GPU memory of rank {sender} cannot be mapped: {error}{cure}") from error

    def _open(self, descriptor: Descriptor, shared: Shared) -> list[int]:
        taken: list[bytes] = []
        addresses: list[int] = []
        try:
            for allocation in shared.allocations:
                if self._sees(shared, allocation):
                    addresses.append(allocation.address)
                    continue
                addresses.append(mappings.take(allocation.handle, self.device))
                taken.append(allocation.handle)
        except BaseException:
            self._unused += taken
            raise
        self._opened[descriptor] = taken
        return addresses

    def _sees(self, shared: Shared, allocation: Exported) -> bool:
        """Whether it lies in this process, where this GPU can read it. On another GPU that may be let read all that
        cudaMalloc has returned, and nothing else."""
        if shared.process != this_process():
            return False
        owner = device_of(shared.device)
        if is_handed_over(allocation.handle):
            return owner == self.device
        let_read(self.device, owner)
        return True

    def _unmap(self, descriptor: Descriptor) -> None:
        self._unused += self._opened.pop(descriptor, ())

    def _close_unused(self) -> None:
        """Unmap what is not used any more, once nothing that was enqueued reads it; until then it stays mapped."""
        if not self._unused or not is_idle(self.device, IDLE_SECONDS):
            return
        unused, self._unused = self._unused, []
        for handle in unused:
            with contextlib.suppress(RegistrationError):
                mappings.give_back(handle, self.device)

    def _shut(self) -> None:
        super()._shut()
        self._close_unused()
        for allocation in self._own:
            del _here[allocation.tensor.data_ptr()]
            with contextlib.suppress(RegistrationError):
                allocation.free()
        self._own.clear()


class CudaIpcTransport(Transport):
    """Is the mapped transport between processes on one GPU, and on GPUs that read each other's memory."""

    name = "cuda_ipc"
    traits = Traits(
        reach=Reach.PEERS,
        sends_from=frozenset({MemoryKind.CUDA, MemoryKind.EXPORTED, MemoryKind.PAGED}),
        maps_memory=True,
        fan_out=FanOut.CONSTANT,
        bandwidth=1e12,
        latency=50e-6,
    )

    @classmethod
    def probe(cls) -> Availability:
        if not may_have_devices():
            return Availability(False, "no NVIDIA GPU, or a torch without CUDA", "use the 'shm' transport")
        try:
            runtime()
        except ImportError as error:
            return Availability(False, f"cuda-bindings is missing: {error}", "pip install ckpt-transport[cuda]")
        return Availability(True)

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        control.exchange(b"", timeout)
        return CudaIpcEndpoint(group, control)
