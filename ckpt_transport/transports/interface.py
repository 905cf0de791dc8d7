"""The one interface between the library and whatever moves bytes.

A plugin names a :class:`Transport` subclass in the entry-point group ``ckpt_transport.transports``. Importing the
plugin and calling :meth:`Transport.probe` must not touch a device. :meth:`Transport.open` attaches one rank to one
route and returns an :class:`Endpoint`; one thread drives it. Most authors subclass one of the four kinds in
:mod:`ckpt_transport.transports` and write a method or two.

Lifetimes nest: endpoint > region > completion. The base classes enforce that, and the order of posts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import msgspec
import torch

from ckpt_transport.errors import (
    EndpointBrokenError,
    EndpointClosedError,
    RegionBusyError,
    RegistrationError,
    TransportError,
)
from ckpt_transport.memory import Buffer, Lendable, device_of
from ckpt_transport.transports.group import Control as Control
from ckpt_transport.transports.group import Group as Group
from ckpt_transport.transports.operations import Completion, MemoryRegion, Receipt
from ckpt_transport.transports.traits import FanOut as FanOut
from ckpt_transport.transports.traits import Reach as Reach
from ckpt_transport.transports.traits import Traits as Traits
from ckpt_transport.transports.transfer import Span as Span
from ckpt_transport.transports.transfer import Transfer as Transfer

API_VERSION = 1

Descriptor = bytes
"""Opaque bytes a peer needs to reach a region. Only the plugin that made them reads them."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a transport can run on this machine, and if not, why and what to do."""

    ok: bool
    reason: str = ""
    hint: str = ""


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
