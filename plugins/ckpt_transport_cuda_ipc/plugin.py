"""Implements the ``cuda_ipc`` transport."""

from __future__ import annotations

import contextlib
import os

import msgspec
import torch

from ckpt_transport import RegistrationError
from ckpt_transport.spi import (
    Availability,
    Buffer,
    Control,
    Descriptor,
    Endpoint,
    FanOut,
    Group,
    MappedEndpoint,
    MemoryKind,
    Reach,
    Traits,
    Transport,
    may_have_devices,
)
from ckpt_transport_cuda_ipc.memory import Allocation, OpenedAllocation, runtime


class Shared(msgspec.Struct, frozen=True, array_like=True):
    """What a descriptor says.

    Attributes:
        process: who allocated it.
        address: where it is in that process.
        handle: cudaIpcMemHandle_t, 64 bytes.
        nbytes: its size.
    """

    process: int
    address: int
    handle: bytes
    nbytes: int


_here: dict[int, Allocation] = {}
"""Allocations of this process by address: every route lends any of them, and CUDA opens a handle elsewhere only."""


class CudaIpcEndpoint(MappedEndpoint):
    """A sender's slots are plain CUDA memory; what is sent from them must be complete on the device.

    Messages order the two processes: READY follows the end of a fill, and ACK the end of an apply. So neither waits for
    the other on the device, and a ring of some slots hides how long messages take.
    """

    def __init__(self, group: Group, control: Control) -> None:
        super().__init__(group, control)
        self._own: list[Allocation] = []
        self._opened: dict[Descriptor, OpenedAllocation] = {}

    def allocate(self, nbytes: int) -> Buffer:
        allocation = Allocation(nbytes, self.device)
        self._own.append(allocation)
        _here[allocation.tensor.data_ptr()] = allocation
        return Buffer(allocation.tensor)

    def _describe(self, buffer: Buffer) -> Descriptor:
        address = buffer.tensor.data_ptr()
        if address not in _here:
            raise RegistrationError(f"'cuda_ipc' can only send from memory that it allocated, not {buffer.kind} memory")
        return msgspec.msgpack.encode(Shared(os.getpid(), address, _here[address].handle, buffer.nbytes))

    def _map(self, sender: int, descriptor: Descriptor) -> torch.Tensor:
        try:
            shared = msgspec.msgpack.decode(descriptor, type=Shared)
            if shared.process == os.getpid():
                return _here[shared.address].tensor
            opened = self._opened[descriptor] = OpenedAllocation(shared.handle, shared.nbytes, self.device)
        except (RegistrationError, msgspec.DecodeError, LookupError) as error:
            raise RegistrationError(f"the GPU memory of rank {sender} cannot be mapped: {error}") from error
        return opened.tensor

    def _unmap(self, descriptor: Descriptor) -> None:
        opened = self._opened.pop(descriptor, None)
        if opened is not None:
            opened.close()

    def _shut(self) -> None:
        super()._shut()
        for allocation in self._own:
            del _here[allocation.tensor.data_ptr()]
            with contextlib.suppress(RegistrationError):
                allocation.free()
        self._own.clear()


class CudaIpcTransport(Transport):
    """Is the mapped transport between the processes that share one GPU."""

    name = "cuda_ipc"
    traits = Traits(
        reach=Reach.DEVICE,
        sends_from=frozenset({MemoryKind.CUDA}),
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
