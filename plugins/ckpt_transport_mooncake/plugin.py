"""Implements the ``mooncake`` transport."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
import torch

from ckpt_transport import RegistrationError, TransferError, TransportError
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
    Locality,
    MemoryKind,
    OneSidedEndpoint,
    Poll,
    RdmaDevice,
    Reach,
    ReadSpan,
    Traits,
    Transport,
    expected_bandwidth,
    locality_of_cpus,
    locality_of_pci,
    nearest,
    prepared,
    rdma_devices,
)
from ckpt_transport_mooncake.engine import VERBS, MooncakeEngine, how_to_install, missing_library
from ckpt_transport_mooncake.links import Offer, agree
from ckpt_transport_mooncake.patterns import select

READS_AT_ONCE = {"rdma": 2, "tcp": 1}
"""An RDMA device wants the next read when one ends; several over TCP only get into each other's way."""
LOOPBACK = "127.0.0.1"
ELSEWHERE = "192.0.2.1"
"""An address of nobody (RFC 5737), for asking which of our own a route outwards has; nothing is sent."""


class MooncakeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of ``mooncake``."""

    protocol: Annotated[
        Literal["auto", "rdma", "tcp"],
        msgspec.Meta(description="'rdma', 'tcp', or 'auto': RDMA where every member of a route has a device for it."),
    ] = "auto"
    devices: Annotated[
        str,
        msgspec.Meta(
            description="RDMA devices to use, in the notation of NCCL_IB_HCA, which counts when this is empty; "
            "without either, those nearest to the rank's GPU or CPUs."
        ),
    ] = ""
    address: Annotated[
        str,
        msgspec.Meta(description="The address at which other hosts reach this rank; found when empty."),
    ] = ""


class MooncakeDescriptor(msgspec.Struct, frozen=True, array_like=True):
    """What a descriptor says: the engine that registered the region, and where it lies in its process."""

    engine: str
    address: int
    nbytes: int


class MooncakeEndpoint(OneSidedEndpoint):
    """Has an engine of its own. What is read lies in memory that its sender described, and goes to a region of ours."""

    poll_seconds = 0.02

    def __init__(self, group: Group, control: Control, timeout: float, options: MooncakeOptions) -> None:
        super().__init__(group, control)
        offer = Offer(options.protocol, _chosen_devices(options, self.device))
        offers = control.exchange(msgspec.msgpack.encode(offer), timeout)
        try:
            protocol = agree(
                {rank: msgspec.msgpack.decode(said, type=prepared(Offer)) for rank, said in offers.items()}
            )
        except UNREADABLE as error:
            raise TransportError(f"route {group.route}: a member offers what is no protocol: {error}") from error
        host = options.address or (LOOPBACK if group.on_one_host else _own_address())
        self._engine = MooncakeEngine(host, protocol, offer.devices)
        self._reads = Calls("ckpt-transport-mooncake", control, READS_AT_ONCE[protocol])
        self._known: dict[Descriptor, MooncakeDescriptor] = {}
        self._meet_members(b"", timeout)

    def allocate(self, nbytes: int) -> Buffer:
        """Memory of the GPU that this rank uses on the route, where this build of Mooncake can, else of the host."""
        device = self.device if self._engine.moves_cuda else torch.device("cpu")
        return Buffer(torch.empty(nbytes, dtype=torch.uint8, device=device))

    def _describe(self, buffer: Buffer) -> Descriptor:
        if buffer.kind is MemoryKind.CUDA and not self._engine.moves_cuda:
            raise RegistrationError(
                "this build of Mooncake moves host memory only; pip install mooncake-transfer-engine-cuda13"
            )
        address = buffer.tensor.data_ptr()
        self._engine.register(address, buffer.nbytes)
        return msgspec.msgpack.encode(MooncakeDescriptor(self._engine.address, address, buffer.nbytes))

    def _undescribe(self, buffer: Buffer, descriptor: Descriptor) -> None:
        self._engine.unregister(buffer.tensor.data_ptr())

    def _connect(self, peers: Mapping[int, Sequence[Descriptor]]) -> None:
        super()._connect(peers)
        try:
            self._known = {
                descriptor: msgspec.msgpack.decode(descriptor, type=prepared(MooncakeDescriptor))
                for descriptors in peers.values()
                for descriptor in descriptors
            }
        except UNREADABLE as error:
            raise RegistrationError(f"a sender described its memory in another way: {error}") from error

    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        if not spans:
            return lambda: True
        regions = [self._known[span.descriptor] for span in spans]
        for span, region in zip(spans, regions, strict=True):
            end = span.offset + span.into.numel()
            if span.offset < 0 or end > region.nbytes:
                raise TransferError(f"rank {sender} registered {region.nbytes:,} bytes, and {end:,} are to be read")
        return self._reads.start(
            partial(
                self._engine.read,
                regions[0].engine,
                [span.into.data_ptr() for span in spans],
                [region.address + span.offset for span, region in zip(spans, regions, strict=True)],
                [span.into.numel() for span in spans],
            )
        )

    def _shut(self) -> None:
        self._engine.stop()
        self._reads.close()
        self._engine.close()


class MooncakeTransport(Transport):
    """Is the one-sided transport over Mooncake's transfer engine."""

    name = "mooncake"
    traits = Traits(
        reach=Reach.NETWORK,
        sends_from=CONTIGUOUS,
        bandwidth=1e9,
        latency=400e-6,
    )
    options_type = MooncakeOptions
    options: MooncakeOptions

    @classmethod
    def probe(cls) -> Availability:
        missing = missing_library()
        if not missing:
            return Availability(True)
        hint = "apt-get install libibverbs1" if VERBS in missing else how_to_install()
        return Availability(False, missing, hint)

    def expected_bandwidth(self) -> float:
        return max(self.traits.bandwidth, expected_bandwidth(_allowed_devices(self.options)))

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        return MooncakeEndpoint(group, control, timeout, self.options)


def _chosen_devices(options: MooncakeOptions, device: torch.device) -> tuple[str, ...]:
    """The RDMA devices this rank would use: those that are named, else the nearest."""
    allowed = _allowed_devices(options)
    return tuple(found.name for found in (allowed if _pattern(options) else nearest(allowed, _place(device))))


def _allowed_devices(options: MooncakeOptions) -> tuple[RdmaDevice, ...]:
    if options.protocol == "tcp":
        return ()
    found = {device.name: device for device in rdma_devices()}
    return tuple(found[name] for name in select(_pattern(options), {name: found[name].ports for name in found}))


def _pattern(options: MooncakeOptions) -> str:
    return (options.devices or os.environ.get("NCCL_IB_HCA", "")).strip()


def _place(device: torch.device) -> Locality:
    if device.type != "cuda":
        return locality_of_cpus(os.sched_getaffinity(0))
    properties: Any = torch.cuda.get_device_properties(device)
    return locality_of_pci(
        f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
    )


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((ELSEWHERE, 9))
        except OSError as error:
            raise RegistrationError(
                f"this host has no route outwards ({error.strerror}); set 'address' of transport 'mooncake' to the "
                "address at which other hosts reach it"
            ) from error
        return str(asking.getsockname()[0])
