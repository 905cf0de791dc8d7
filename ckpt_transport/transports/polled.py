"""What the four families share: operations that are polled, and signals between the members of a route."""

from __future__ import annotations

import enum
import time
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence

import msgspec
import torch

from ckpt_transport.decoding import UNREADABLE
from ckpt_transport.errors import PeerLostError, TransferError, TransportError
from ckpt_transport.memory import DistantMemory, Fence
from ckpt_transport.reasons import reason_of
from ckpt_transport.transports.agreement import Agreement
from ckpt_transport.transports.interface import Control, Endpoint, Group, Transfer
from ckpt_transport.transports.operations import MemoryRegion, Receipt

Poll = Callable[[], bool]
"""Whether one piece of work has ended. Raises a TransportError when it failed. Not called again after True."""

KNOWN_SPANS = 1 << 14
"""Of so many transfers it is remembered what was found out about their spans."""
SIGNALS_AT_ONCE = 32
"""Signals that are taken in before operations are looked at again: a sender may say more at once than that."""
READY_AT_ONCE = 256
"""Transfers that are announced by one message, where so many are posted before the first is polled."""
EXPLANATION_WAIT = 1.0
"""Seconds for which a lost connection may still be explained by its member's own ABORT, which says why."""


class SignalKind(enum.IntEnum):
    """The kinds of signals."""

    READY = 0
    """The sender has posted transfers, whose bytes may be read; carries the digest of the record of each."""
    ACK = 1
    """The receiver does not need the sender's bytes of a transfer any more."""
    ABORT = 2
    """The route has failed at the member that says so."""
    ACK_UP_TO = 3
    """The receiver does not need the sender's bytes of a transfer any more, nor of any earlier one."""


class Signal(msgspec.Struct, frozen=True, array_like=True):
    """What one member of a route tells another.

    Attributes:
        kind: which of the fields counts.
        seq, digest: of a transfer.
        reason: of an ABORT.
        more: the transfers, and their digests, that were posted after the first.
    """

    kind: SignalKind
    seq: int = -1
    digest: int = 0
    reason: str = ""
    more: tuple[tuple[int, int], ...] = ()


encoded = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Signal).decode


class PolledOperation(Receipt):
    """One posted send or receive: terminal once every one of its polls has said True."""

    def __init__(
        self,
        endpoint: PolledEndpoint,
        transfer: Transfer,
        polls: Iterable[Poll],
        regions: Sequence[MemoryRegion] = (),
        views: Callable[[], Sequence[torch.Tensor]] = tuple,
        on_release: Callable[[], None] | None = None,
        fence: Callable[[], Fence | None] = lambda: None,
        distant: DistantMemory | None = None,
    ) -> None:
        self.transfer = transfer
        self._endpoint = endpoint
        self._polls = list(polls)
        self._regions = list(regions)
        self._make_views = views
        self._on_release = on_release
        self._fence = fence
        self._distant = distant
        self._finished = False
        for region in self._regions:
            region.acquire()
        endpoint._outstanding.append(self)

    def done(self) -> bool:
        if self._finished:
            return True
        if isinstance(self._endpoint._broken, TransportError):
            raise self._endpoint._broken
        self._endpoint._check_usable()
        self._endpoint._say_ready()
        if not self._ended():
            self._endpoint._progress()
            if not self._ended():
                return False
        self._finished = True
        self._endpoint._outstanding.remove(self)
        self._let_go()
        return True

    def fence(self) -> Fence | None:
        return self._fence()

    def views(self) -> Sequence[torch.Tensor]:
        return self._make_views()

    def distant(self) -> DistantMemory | None:
        return self._distant

    def release(self) -> None:
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release()

    def _ended(self) -> bool:
        """Whether all polls have said True, by what the members have said so far."""
        if self._endpoint._suspicion is not None:
            return False
        try:
            while self._polls and self._polls[0]():
                self._polls.pop(0)
        except PeerLostError as error:
            self._endpoint._suspect(error)
            return False
        except Exception as error:
            self._endpoint._progress()  # a member may have said why
            if isinstance(error, TransportError):
                self._endpoint.abort(error)
                raise
            failure = TransferError(f"transfer {self.transfer.seq} on route {self._endpoint.group.route}: {error}")
            self._endpoint.abort(failure)
            raise failure from error
        return not self._polls

    def _let_go(self) -> None:
        for region in self._regions:
            region.release()


class PolledEndpoint(Endpoint):
    """Keeps the operations in flight and deals with signals; the base of all families."""

    def __init__(self, group: Group, control: Control) -> None:
        super().__init__(group, control)
        self._outstanding: list[PolledOperation] = []
        self._agreement = Agreement(group.route)
        self._fitting: dict[int, tuple[Transfer, Sequence[Hashable]]] = {}
        """Sends whose spans were found within their regions, by the identity of the spans, which come again with each
        version of a plan; and where these regions were."""
        self._suspicion: tuple[PeerLostError, float] | None = None
        self._unsaid: list[tuple[int, int]] = []
        self._unsaid_to: tuple[int, ...] = ()

    # -- for the families ---------------------------------------------------------------------------------------

    def _announce(self, transfer: Transfer) -> None:
        """Tell the receivers that this rank has posted its send of ``transfer``, at the latest when it is polled."""
        if transfer.receivers != self._unsaid_to or len(self._unsaid) == READY_AT_ONCE:
            self._say_ready()
        self._unsaid_to = transfer.receivers
        self._unsaid.append((transfer.seq, transfer.digest))

    def _say_ready(self) -> None:
        """Tell the receivers of what was posted and not announced yet, by one message to each."""
        if self._unsaid:
            (seq, digest), *more = self._unsaid
            self._unsaid = []
            payload = encoded(Signal(SignalKind.READY, seq, digest, more=tuple(more)))
            self._send_each(self._unsaid_to, payload)

    def _send_each(self, receivers: Sequence[int], payload: bytes) -> None:
        """Send the same to several members. One that calls a library which does not return could not hand it on."""
        for receiver in receivers:
            self.control.send(receiver, payload)

    def _agreed(self, transfer: Transfer) -> Poll:
        """The first poll of a receive: True once the sender has announced exactly this transfer."""
        self._agreement.expect(transfer)
        return lambda: self._agreement.reached(transfer)

    def _sources(self, transfer: Transfer, regions: Sequence[MemoryRegion]) -> list[torch.Tensor]:
        """The bytes that each span of ``transfer`` sends.

        Raises: as :meth:`_check_spans`.
        """
        self._check_spans(transfer, regions)
        return [regions[span.region].slice(span.offset, span.nbytes) for span in transfer.spans]

    def _check_spans(self, transfer: Transfer, regions: Sequence[MemoryRegion]) -> None:
        """
        Raises:
            TransportError: a span names a region, or bytes, that there are not.
        """
        places = [region.place for region in regions]
        known = self._fitting.get(id(transfer.spans))
        if known is not None and known[0].spans is transfer.spans and known[1] == places:
            return
        for span in transfer.spans:
            if not 0 <= span.region < len(regions):
                raise TransportError(
                    f"transfer {transfer.seq} names region {span.region} of rank {transfer.sender}, "
                    f"which posts it with {len(regions)} regions"
                )
            regions[span.region].check(span.offset, span.nbytes)
        if len(self._fitting) >= KNOWN_SPANS:
            self._fitting.clear()
        self._fitting[id(transfer.spans)] = transfer, places

    def _signal(self, rank: int, signal: Signal) -> None:
        self.control.send(rank, encoded(signal))

    def _on_ready(self, sender: int, seq: int) -> None:
        """A transfer was announced; override where the family gives it back."""

    def _on_ack(self, receiver: int, seq: int, *, and_before: bool) -> None:
        """A transfer was given back, ``and_before`` it all earlier ones; override where the family uses that."""

    def _progress(self) -> None:
        """Take in what the other members have said."""
        try:
            for _ in range(SIGNALS_AT_ONCE):
                message = self.control.receive()
                if message is None:
                    break
                sender, payload = message
                signal = _decode(payload)
                if signal.kind is SignalKind.ABORT:
                    raise PeerLostError(f"rank {sender} gave up on route {self.group.route}: {signal.reason}")
                if signal.kind is SignalKind.READY:
                    for seq, digest in ((signal.seq, signal.digest), *signal.more):
                        self._agreement.hear(sender, seq, digest)
                        self._on_ready(sender, seq)
                else:
                    self._on_ack(sender, signal.seq, and_before=signal.kind is SignalKind.ACK_UP_TO)
            else:
                self.control.wake()
            self._agreement.check(self._next_seq)
            if self._suspicion is not None and time.monotonic() > self._suspicion[1]:
                raise self._suspicion[0]
        except TransportError as error:
            self.abort(error)
            raise
        except UNREADABLE as error:
            failure = TransferError(f"route {self.group.route} received a signal that is not one: {error}")
            self.abort(failure)
            raise failure from error

    def _suspect(self, error: PeerLostError) -> None:
        """A connection is gone. Fails the route, as soon as its member has said why or is not going to."""
        if self._suspicion is None:
            self._suspicion = error, time.monotonic() + EXPLANATION_WAIT

    def _in_flight(self) -> int:
        return len(self._outstanding)

    # -- the end ------------------------------------------------------------------------------------------------

    def _abort(self, reason: BaseException) -> None:
        outstanding, self._outstanding = self._outstanding, []
        self._unsaid.clear()
        try:
            for peer in self.group.peers:
                try:
                    self._signal(peer, Signal(SignalKind.ABORT, reason=reason_of(reason)))
                except TransportError:
                    continue
        finally:
            self._interrupt()
            for operation in outstanding:
                operation._let_go()

    def _close(self) -> None:
        self._outstanding.clear()
        self._shut()

    # -- for plugins --------------------------------------------------------------------------------------------

    def _meet_members(self, payload: bytes, timeout: float) -> dict[int, bytes]:
        """Exchange something with every member, as the last step of opening; shut everything if one does not come."""
        try:
            return self.control.exchange(payload, timeout)
        except BaseException:
            self._shut()
            raise

    def _interrupt(self) -> None:
        """Make the library underneath give up on what is in flight, for which it is shut unless you override this.

        When it returns, the library touches the memory of those operations no more: their regions can be closed.
        """
        self._shut()

    @abstractmethod
    def _shut(self) -> None:
        """Release what the library underneath holds. Idempotent: :meth:`close` calls it also after :meth:`abort`."""
