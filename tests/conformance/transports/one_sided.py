"""One-sided reads between processes of one host and one user, by ``process_vm_readv``."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import msgspec

from ckpt_transport.errors import PeerLostError, RegistrationError, TransferError, TransportError
from ckpt_transport.memory import Buffer, MemoryKind
from ckpt_transport.transports import OneSidedEndpoint, Poll, ReadSpan
from ckpt_transport.transports.interface import (
    Availability,
    Control,
    Descriptor,
    Endpoint,
    FanOut,
    Group,
    Reach,
    Traits,
    Transport,
)

PR_SET_PTRACER = 0x59616D61
PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)
CHUNK = 1024**2
"""Bytes that one poll reads, so that large reads end in several polls as real ones do."""


class IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


libc = ctypes.CDLL(None, use_errno=True)
libc.process_vm_readv.restype = ctypes.c_ssize_t
libc.process_vm_readv.argtypes = (
    ctypes.c_int,
    ctypes.POINTER(IoVec),
    ctypes.c_ulong,
    ctypes.POINTER(IoVec),
    ctypes.c_ulong,
    ctypes.c_ulong,
)


class Address(msgspec.Struct, frozen=True, array_like=True):
    """Where a region lies."""

    pid: int
    start: int
    nbytes: int


def read_memory(pid: int, source: int, into: int, nbytes: int) -> int:
    """Copy from another process (or this one); returns how many bytes came.

    Raises:
        OSError: as process_vm_readv(2) says.
    """
    local, remote = IoVec(into, nbytes), IoVec(source, nbytes)
    got: int = libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if got < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return got


class ReadEndpoint(OneSidedEndpoint):
    """A descriptor is a process and an address in it."""

    def __init__(self, group: Group, control: Control) -> None:
        super().__init__(group, control)
        self._addresses: dict[Descriptor, Address] = {}

    def _describe(self, buffer: Buffer) -> Descriptor:
        if buffer.kind is MemoryKind.CUDA:
            raise RegistrationError("only host memory can be read from another process")
        return msgspec.msgpack.encode(Address(os.getpid(), buffer.tensor.data_ptr(), buffer.nbytes))

    def _connect(self, peers: Mapping[int, Sequence[Descriptor]]) -> None:
        super()._connect(peers)
        self._addresses = {
            descriptor: self._checked(sender, descriptor)
            for sender, descriptors in peers.items()
            for descriptor in descriptors
        }

    def _checked(self, sender: int, descriptor: Descriptor) -> Address:
        address = msgspec.msgpack.decode(descriptor, type=Address)
        try:
            owner = Path(f"/proc/{address.pid}").stat().st_uid
        except FileNotFoundError as error:
            raise RegistrationError(f"the process of rank {sender} is gone") from error
        if owner != os.getuid():
            raise RegistrationError(f"the process of rank {sender} belongs to another user")
        return address

    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        left = [(span, 0) for span in spans]

        def read_some() -> bool:
            budget = CHUNK
            while left and budget > 0:
                span, already = left[0]
                nbytes = min(span.into.numel() - already, budget)
                got = self._read_piece(sender, span, already, nbytes)
                budget -= got
                left[0] = span, already + got
                if already + got == span.into.numel():
                    left.pop(0)
            return not left

        return read_some

    def _read_piece(self, sender: int, span: ReadSpan, already: int, nbytes: int) -> int:
        address = self._addresses[span.descriptor]
        start = span.offset + already
        if start + nbytes > address.nbytes:
            raise TransferError(f"rank {sender} registered {address.nbytes} bytes there, and {start + nbytes} are read")
        try:
            return read_memory(address.pid, address.start + start, span.into.data_ptr() + already, nbytes)
        except OSError as error:
            raise self._translate(sender, error) from error

    def _translate(self, sender: int, error: OSError) -> TransportError:
        if error.errno == errno.ESRCH:
            return PeerLostError(f"the process of rank {sender} is gone")
        return TransferError(f"the memory of rank {sender} cannot be read: {error.strerror}")

    def _shut(self) -> None:
        self._addresses.clear()


class ReadTransport(Transport):
    """Works between processes that may trace each other; every endpoint lets its peers do so."""

    name = "process-vm-readv"
    traits = Traits(
        reach=Reach.HOST,
        sends_from=frozenset({MemoryKind.PRIVATE, MemoryKind.SHARED}),
        maps_memory=False,
        fan_out=FanOut.LINEAR,
        bandwidth=5e9,
        latency=100e-6,
    )
    endpoint_type: ClassVar[type[ReadEndpoint]] = ReadEndpoint

    @classmethod
    def probe(cls) -> Availability:
        word, copy = ctypes.c_uint32(0x1234), ctypes.c_uint32()
        try:
            read_memory(os.getpid(), ctypes.addressof(word), ctypes.addressof(copy), 4)
        except OSError as error:
            return Availability(False, f"process_vm_readv is not allowed here: {error.strerror}")
        return Availability(True)

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        libc.prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)  # for Yama; fails harmlessly where there is none
        control.exchange(b"", timeout)
        return self.endpoint_type(group, control)
