"""What the four families share: operations that are polled, and signals between the members of a route."""

from __future__ import annotations

import enum
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence

import msgspec
import torch

from ckpt_transport.errors import (
    EndpointBrokenError,
    EndpointClosedError,
    PeerLostError,
    TransferError,
    TransportError,
)
from ckpt_transport.transport import Control, Endpoint, Group, MemoryRegion, Receipt, Transfer

Poll = Callable[[], bool]
"""Whether one piece of work has ended. Raises a TransportError when it failed. Not called again after True."""


class SignalKind(enum.IntEnum):
    """What one member of a route tells another."""

    READY = 0
    """The sender's bytes of a transfer may be read."""
    ACK = 1
    """The receiver does not need the sender's bytes of a transfer any more."""
    ABORT = 2
    """The route has failed at the member that says so."""


class Signal(msgspec.Struct, frozen=True, array_like=True):
    kind: SignalKind
    seq: int = -1
    reason: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Signal).decode


class Operation(Receipt):
    """One posted send or receive: terminal once every one of its polls has said True."""

    def __init__(
        self,
        endpoint: PolledEndpoint,
        transfer: Transfer,
        polls: Iterable[Poll],
        regions: Sequence[MemoryRegion] = (),
        views: Callable[[], Sequence[torch.Tensor]] = tuple,
        on_release: Callable[[], None] | None = None,
    ) -> None:
        self.transfer = transfer
        self._endpoint = endpoint
        self._polls = list(polls)
        self._regions = list(regions)
        self._make_views = views
        self._on_release = on_release
        self._finished = False
        for region in self._regions:
            region.acquire()
        endpoint._outstanding.append(self)

    def done(self) -> bool:
        if self._finished:
            return True
        self._endpoint._raise_if_unusable()
        self._endpoint._progress()
        try:
            while self._polls and self._polls[0]():
                self._polls.pop(0)
        except TransportError as error:
            self._endpoint.abort(error)
            raise
        except Exception as error:
            failure = TransferError(f"transfer {self.transfer.seq} on route {self._endpoint.group.route}: {error}")
            self._endpoint.abort(failure)
            raise failure from error
        if not self._polls:
            self._finished = True
            self._endpoint._outstanding.remove(self)
            for region in self._regions:
                region.release()
        return self._finished

    def views(self) -> Sequence[torch.Tensor]:
        return self._make_views()

    def release(self) -> None:
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release()


class PolledEndpoint(Endpoint):
    """Keeps the operations in flight and deals with signals; the base of all families."""

    def __init__(self, group: Group, control: Control) -> None:
        super().__init__(group, control)
        self._outstanding: list[Operation] = []

    # -- for the families ---------------------------------------------------------------------------------------

    def _signal(self, rank: int, signal: Signal) -> None:
        self.control.send(rank, _encode(signal))

    def _on_signal(self, sender: int, signal: Signal) -> None:
        """A READY or ACK arrived; override where the family uses them."""

    def _progress(self) -> None:
        """Take in what the other members have said."""
        try:
            while (message := self.control.receive()) is not None:
                sender, payload = message
                signal = _decode(payload)
                if signal.kind is SignalKind.ABORT:
                    raise PeerLostError(f"rank {sender} gave up on route {self.group.route}: {signal.reason}")
                self._on_signal(sender, signal)
        except TransportError as error:
            self.abort(error)
            raise
        except msgspec.DecodeError as error:
            failure = TransferError(f"route {self.group.route} received a signal that is not one: {error}")
            self.abort(failure)
            raise failure from error

    def _raise_if_unusable(self) -> None:
        if self._broken is not None:
            if isinstance(self._broken, TransportError):
                raise self._broken
            raise EndpointBrokenError(f"route {self.group.route} broke: {self._broken}") from self._broken
        if self._closed:
            raise EndpointClosedError(f"route {self.group.route} was closed")

    # -- the end ------------------------------------------------------------------------------------------------

    def _abort(self, reason: BaseException) -> None:
        self._outstanding.clear()
        for peer in self.group.peers:
            try:
                self._signal(peer, Signal(SignalKind.ABORT, reason=str(reason)))
            except TransportError:
                continue
        self._interrupt(reason)

    def _close(self) -> None:
        self._outstanding.clear()
        self._shut()

    # -- for plugins --------------------------------------------------------------------------------------------

    def _interrupt(self, reason: BaseException) -> None:
        """Make the library underneath give up on what is in flight; override where it needs telling."""

    @abstractmethod
    def _shut(self) -> None:
        """Release what the library underneath holds."""
