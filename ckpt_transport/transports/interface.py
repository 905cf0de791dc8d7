"""The one interface between the library and whatever moves bytes.

A plugin names a :class:`Transport` subclass in the entry-point group ``ckpt_transport.transports``. Importing the
plugin and calling :meth:`Transport.probe` must not touch a device. :meth:`Transport.open` attaches one rank to one
route and returns an :class:`Endpoint`; one thread drives it. Most authors subclass one of the four kinds in
:mod:`ckpt_transport.transports` and write a method or two.

Lifetimes nest: endpoint > region > completion. The base classes enforce that, and the order of posts.
"""

from __future__ import annotations

import enum
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import msgspec
import torch

from ckpt_transport.errors import (
    EndpointBrokenError,
    EndpointClosedError,
    RegionBusyError,
    RegistrationError,
    TransportError,
)
from ckpt_transport.memory import Buffer, Lendable, MemoryKind, device_of
from ckpt_transport.transports.operations import Completion, MemoryRegion, Receipt

API_VERSION = 1

Descriptor = bytes
"""Opaque bytes a peer needs to reach a region. Only the plugin that made them reads them."""


class Reach(enum.StrEnum):
    """How far apart the ranks of a route may be."""

    DEVICE = "device"
    """All on one GPU."""
    PEERS = "peers"
    """Within a host, on GPUs that can read the memory of the sender's."""
    HOST = "host"
    NETWORK = "network"


class FanOut(enum.StrEnum):
    """What sending to n receivers costs, in times what one costs."""

    CONSTANT = "constant"
    TREE = "tree"
    """The logarithm of n + 1 to base 2."""
    LINEAR = "linear"


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """What the cost model may know about a transport. Nothing else reads it.

    Attributes:
        reach: how far it goes.
        sends_from: memory kinds it can send from where they lie; a bucket in any other kind is first filled into a slot
            that the endpoint allocated.
        maps_memory: a receiver sees the sender's own memory, so it needs no slot and no byte moves.
        fan_out: how the cost grows with the number of receivers.
        bandwidth: bytes per second between one sender and one receiver, a conservative typical figure; between hosts
            see :meth:`Transport.expected_bandwidth`.
        latency: seconds one transfer costs whatever its size.
        one_rank_per_device: the members of a route must all be on different GPUs.
    """

    reach: Reach
    sends_from: frozenset[MemoryKind]
    fan_out: FanOut = FanOut.LINEAR
    bandwidth: float
    latency: float
    maps_memory: bool = False
    one_rank_per_device: bool = False

    @property
    def on_device(self) -> bool:
        """Whether it moves memory of GPUs only, so that every member needs one."""
        return MemoryKind.CUDA in self.sends_from <= {MemoryKind.CUDA, MemoryKind.EXPORTED}


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a transport can run on this machine, and if not, why and what to do."""

    ok: bool
    reason: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """The ranks of one route, and which of them this is.

    Attributes:
        route: a name all members agree on, unique among the routes that are open.
        ranks: the members, in the order all of them use.
        rank: this member.
        hosts: the host each member runs on, in the order of ``ranks``.
        devices: the UUID of the GPU that each member uses on this route; empty for none.
    """

    route: str
    ranks: tuple[int, ...]
    rank: int
    hosts: tuple[str, ...]
    devices: tuple[str, ...] = ()

    @property
    def device(self) -> str:
        """The UUID of the GPU that this member uses; empty for none."""
        return self.devices[self.index] if self.devices else ""

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def index(self) -> int:
        """This member's position in ``ranks``."""
        return self.ranks.index(self.rank)

    @property
    def on_one_host(self) -> bool:
        return len(set(self.hosts)) == 1

    @property
    def peers(self) -> tuple[int, ...]:
        """Everybody else."""
        return tuple(rank for rank in self.ranks if rank != self.rank)


class Control(Protocol):
    """Small reliable messages between the members of one route, ordered per sender.

    It carries rendezvous data and one-line signals, never weights. Every method may raise
    :class:`~ckpt_transport.errors.PeerLostError` when a member's heartbeat has stopped.
    """

    def send(self, rank: int, payload: bytes) -> None:
        """Send to one member; returns at once."""

    def receive(self) -> tuple[int, bytes] | None:
        """The next message and its sender, or None when there is none now."""

    def wake(self) -> None:
        """Have the endpoint's completions polled soon. The one method that any thread may call."""

    def exchange(self, payload: bytes, timeout: float) -> dict[int, bytes]:
        """Give ``payload`` to every member and return everybody's, own included. All members must call it.

        Raises:
            TransferTimeout: somebody's did not arrive within ``timeout`` seconds.
        """


class Span(msgspec.Struct, frozen=True, array_like=True):
    """One run of bytes of a transfer.

    Attributes:
        region: which of the sender's regions, counted in the order of its descriptors.
        offset: where it starts in that region, in bytes.
        local: where it goes in the receiver's region, in bytes.
        nbytes: its length.
    """

    region: int
    offset: int
    local: int
    nbytes: int


class Transfer(msgspec.Struct, frozen=True):
    """The request record of one transfer, the same on every rank that takes part.

    A receiver whose record differs from the sender's is never given the bytes: its completion raises TransferError.

    Attributes:
        seq: rises along a route. Every member posts the transfers it takes part in, in this order.
        sender: the rank whose memory the spans name.
        receivers: the ranks that get the bytes.
        spans: the scatter list.
        reused: the sender waits for this memory to use it again. Of other memory, a receiver may give back many
            transfers by one message.
    """

    seq: int
    sender: int
    receivers: tuple[int, ...]
    spans: tuple[Span, ...]
    reused: bool = True

    @property
    def nbytes(self) -> int:
        return sum(span.nbytes for span in self.spans)

    @property
    def digest(self) -> int:
        """63 bits of a hash of the record, for comparing it with another rank's."""
        return int.from_bytes(hashlib.blake2b(_encode(self), digest_size=8).digest(), "big") >> 1


_encode = msgspec.msgpack.Encoder().encode


class Endpoint(ABC):
    """One rank's attachment to one route. One thread drives it.

    The public methods check lifetimes, order and arguments, and call the underscored ones, which plugins write.
    """

    poll_seconds: ClassVar[float] = 0.001
    """How long a completion may go unpolled. May be long where whatever ends an operation is a message on the control
    channel, or calls :meth:`Control.wake`."""

    stream: torch.cuda.Stream | None = None
    """Where transfers are enqueued in the order of their posts, so that a device orders them: what this stream was made
    to wait for before a post need not have ended when the transfer is posted. None where it must have."""

    def __init__(self, group: Group, control: Control) -> None:
        self.group = group
        self.control = control
        self._regions: list[MemoryRegion] = []
        self._next_seq = 0
        self._closed = False
        self._broken: BaseException | None = None

    @cached_property
    def device(self) -> torch.device:
        """The GPU that this rank uses on the route; the host where it uses none.

        Raises:
            RegistrationError: this process cannot use that GPU.
        """
        try:
            return device_of(self.group.device)
        except LookupError as error:
            raise RegistrationError(f"route {self.group.route}: {error}") from error

    # -- memory -------------------------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> Buffer:
        """Memory this transport can send from and receive into; override where it must own memory."""
        return Buffer.private(nbytes)

    def register(self, memory: Lendable) -> MemoryRegion:
        """Make ``memory`` usable in transfers. The caller keeps it alive until the region is closed.

        Raises:
            RegistrationError: this transport cannot use that memory.
        """
        self._check_usable()
        described = self._describe(memory) if isinstance(memory, Buffer) else self._describe_runs(memory)
        region = MemoryRegion(self, memory, described)
        self._regions.append(region)
        return region

    def connect(self, peers: Mapping[int, Sequence[Descriptor]]) -> None:
        """Learn the descriptors of every sender on this route. Off the data path; again when they change.

        Raises:
            RegistrationError: a peer's memory cannot be reached.
        """
        self._check_usable()
        self._connect(peers)

    # -- operations ---------------------------------------------------------------------------------------------

    def post_send(self, transfer: Transfer, regions: Sequence[MemoryRegion]) -> Completion:
        """Start sending. ``regions`` are this rank's, in the order of its descriptors. Returns at once.

        Raises:
            EndpointBrokenError, EndpointClosedError: it failed earlier, or was closed.
            TransportError: the transfer is out of order, is not this rank's to send, or names bytes that no region
                has. Nothing was posted then, and the endpoint is as it was.
        """
        self._check_order(transfer, sends=True)
        completion = self._send(transfer, regions)
        self._next_seq = transfer.seq + 1
        return completion

    def post_recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
        """Start receiving into ``region`` (None where this transport maps memory). Returns at once.

        Raises: as :meth:`post_send`.
        """
        self._check_order(transfer, sends=False)
        receipt = self._recv(transfer, region)
        self._next_seq = transfer.seq + 1
        return receipt

    # -- the end ------------------------------------------------------------------------------------------------

    def abort(self, reason: BaseException) -> None:
        """Fail every outstanding operation with ``reason``, here and as soon as possible at the peers. Idempotent."""
        if self._broken is None and not self._closed:
            self._broken = reason
            self._abort(reason)

    def close(self) -> None:
        """Release everything. Idempotent; releases even when the graceful part fails.

        Raises:
            RegionBusyError: operations are outstanding; abort first, or wait.
        """
        if self._closed:
            return
        if self._broken is None and self._in_flight():
            raise RegionBusyError(f"route {self.group.route} still has operations in flight; wait for them, or abort")
        self._closed = True
        self._regions.clear()
        self._close()

    # -- for plugins --------------------------------------------------------------------------------------------

    def _describe(self, buffer: Buffer) -> Descriptor:
        """Register ``buffer`` with the library underneath and return what a peer needs to reach it."""
        return b""

    def _describe_runs(self, memory: Lendable) -> Descriptor:
        """As :meth:`_describe`, of memory that lies in several runs: for transports whose receivers map it there.

        Override it where ``sends_from`` has a kind that lies apart.
        """
        raise RegistrationError(f"route {self.group.route} cannot send from {memory.kind} memory where it lies")

    def _undescribe(self, buffer: Buffer, descriptor: Descriptor) -> None:
        """Undo the :meth:`_describe` that returned ``descriptor``. Not called for regions still open at ``close``."""

    def _connect(self, peers: Mapping[int, Sequence[Descriptor]]) -> None:
        """Use the peers' descriptors."""
        return

    @abstractmethod
    def _send(self, transfer: Transfer, regions: Sequence[MemoryRegion]) -> Completion: ...

    @abstractmethod
    def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt: ...

    @abstractmethod
    def _abort(self, reason: BaseException) -> None:
        """Stop what is in flight; outstanding completions raise from now on."""

    @abstractmethod
    def _close(self) -> None:
        """Release what the library underneath holds."""

    def _in_flight(self) -> int:
        """How many operations are outstanding; override where some use no region."""
        return sum(region.busy for region in self._regions)

    def _check_usable(self) -> None:
        if self._closed:
            raise EndpointClosedError(f"route {self.group.route} was closed")
        if self._broken is not None:
            raise EndpointBrokenError(f"route {self.group.route} broke: {self._broken}") from self._broken

    def _check_order(self, transfer: Transfer, *, sends: bool) -> None:
        self._check_usable()
        if transfer.seq < self._next_seq:
            raise TransportError(f"transfer {transfer.seq} was posted after transfer {self._next_seq - 1}")
        if sends != (transfer.sender == self.group.rank) or not (sends or self.group.rank in transfer.receivers):
            raise TransportError(
                f"rank {self.group.rank} cannot {'send' if sends else 'receive'} transfer {transfer.seq}, "
                f"which goes from {transfer.sender} to {transfer.receivers}"
            )

    def _forget(self, region: MemoryRegion) -> None:
        if region in self._regions:
            self._regions.remove(region)
            if isinstance(region.memory, Buffer):
                self._undescribe(region.memory, region.descriptor)


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of a transport that has none of its own."""


class Transport(ABC):
    """What an entry point in ``ckpt_transport.transports`` names.

    Attributes:
        options_type: the settings it has of its own, as a struct whose fields have defaults and, as
            ``Annotated[..., msgspec.Meta(description=...)]``, a meaning.

    Args:
        options: its settings, an ``options_type``; the defaults when there are none.
    """

    name: ClassVar[str]
    api_version: ClassVar[int] = API_VERSION
    traits: ClassVar[Traits]
    options_type: ClassVar[type[msgspec.Struct]] = NoOptions

    def __init__(self, options: msgspec.Struct | None = None) -> None:
        self.options = self.options_type() if options is None else options

    @classmethod
    @abstractmethod
    def probe(cls) -> Availability:
        """Whether it can run here. Cheap; touches no device and starts nothing."""

    def expected_bandwidth(self) -> float:
        """Bytes per second to and from other hosts, as its options and what there is here let expect.

        Override where that is known better than from the traits; as cheap as :meth:`probe`. Between several hosts a
        transport counts as fast as the member of the update that expects least.
        """
        return self.traits.bandwidth

    @abstractmethod
    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        """Attach this rank to a route. All members call it at about the same time.

        Raises:
            TransferTimeout: the others did not turn up within ``timeout`` seconds.
            TransportError: the library underneath refused.
        """
