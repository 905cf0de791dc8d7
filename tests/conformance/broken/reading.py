"""Broken subclasses of the one-sided transport."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckpt_transport.errors import PeerLostError, TransportError
from ckpt_transport.memory import Buffer, Lendable
from ckpt_transport.testing.wrappers import ForwardingReceipt
from ckpt_transport.transports import Poll, ReadSpan
from ckpt_transport.transports.agreement import Agreement
from ckpt_transport.transports.interface import Control, Descriptor, Group, Transfer
from ckpt_transport.transports.operations import MemoryRegion, Receipt
from tests.conformance.transports.one_sided import ReadEndpoint, ReadTransport


class _CompletesBeforeRead(ReadEndpoint):
    def _all_acknowledged(self, transfer: Transfer) -> bool:
        return True


class CompletesBeforeRead(ReadTransport):
    """The sender is done as soon as it has posted; nobody has read anything yet."""

    endpoint_type = _CompletesBeforeRead


class _LosesLastSpan(ReadEndpoint):
    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        return super()._read(sender, spans[:-1] if len(spans) > 1 else spans)


class LosesLastSpan(ReadTransport):
    """The last span of a scatter list is not read."""

    endpoint_type = _LosesLastSpan


class _ReadsWords(ReadEndpoint):
    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        words = [span.into.numel() // 4 * 4 for span in spans]
        return super()._read(
            sender,
            [ReadSpan(s.descriptor, s.offset, s.into[:n]) for s, n in zip(spans, words, strict=True) if n],
        )


class ReadsWords(ReadTransport):
    """Bytes after the last whole word are forgotten."""

    endpoint_type = _ReadsWords


class _Torn(ReadEndpoint):
    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        read_some = super()._read(sender, spans)
        return lambda: read_some() or True


class Torn(ReadTransport):
    """A receive is done after the first piece of a large transfer."""

    endpoint_type = _Torn


class _WritesBeside(ReadEndpoint):
    def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
        receipt = super()._recv(transfer, region)
        if region is not None and transfer.spans and transfer.spans[-1].local:
            region.slice(transfer.spans[-1].local - 1, 1).fill_(0)
        return receipt


class WritesBeside(ReadTransport):
    """The byte before a span is written too."""

    endpoint_type = _WritesBeside


class _Deaf:
    """A control channel that does not mention lost peers."""

    def __init__(self, inner: Control) -> None:
        self.send, self.exchange, self.wake = inner.send, inner.exchange, inner.wake
        self.send_each, self.mention = inner.send_each, inner.mention
        self._inner = inner

    def receive(self) -> tuple[int, bytes] | None:
        try:
            return self._inner.receive()
        except PeerLostError:
            return None


class _HangsWhenPeerDies(ReadEndpoint):
    def __init__(self, group: Group, control: Control) -> None:
        super().__init__(group, _Deaf(control))

    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        read_some = super()._read(sender, spans)

        def patient() -> bool:
            try:
                return read_some()
            except PeerLostError:
                return False

        return patient


class HangsWhenPeerDies(ReadTransport):
    """Waits for a dead peer for ever."""

    endpoint_type = _HangsWhenPeerDies


class _Optimist(ForwardingReceipt):
    def done(self) -> bool:
        try:
            return super().done()
        except TransportError:
            return True


class _SwallowsErrors(ReadEndpoint):
    def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
        return _Optimist(super()._recv(transfer, region))


class SwallowsErrors(ReadTransport):
    """A receive that failed says done."""

    endpoint_type = _SwallowsErrors


class _KeepsReason(ReadEndpoint):
    def _abort(self, reason: BaseException) -> None:
        super()._abort(TransportError("something went wrong"))


class KeepsReason(ReadTransport):
    """Peers hear of an abort, and not why."""

    endpoint_type = _KeepsReason


class _Agreeable(Agreement):
    def check(self, next_seq: int) -> None:
        pass

    def reached(self, transfer: Transfer) -> bool:
        return self._announced.pop(transfer.seq, None) is not None


class _AcceptsAnyPlan(ReadEndpoint):
    def __init__(self, group: Group, control: Control) -> None:
        super().__init__(group, control)
        self._agreement = _Agreeable(group.route)


class AcceptsAnyPlan(ReadTransport):
    """Whatever the sender sends, the receiver takes its own spans from it."""

    endpoint_type = _AcceptsAnyPlan


class _ClosesBusyRegions(ReadEndpoint):
    def register(self, memory: Lendable) -> MemoryRegion:
        region = super().register(memory)
        region.acquire = region.release = lambda: None  # type: ignore[method-assign]
        return region


class ClosesBusyRegions(ReadTransport):
    """A region is not known to be in use."""

    endpoint_type = _ClosesBusyRegions


class _TakesAnyOrder(ReadEndpoint):
    def _check_order(self, transfer: Transfer, *, sends: bool) -> None:
        self._check_usable()


class TakesAnyOrder(ReadTransport):
    """Posts are not looked at."""

    endpoint_type = _TakesAnyOrder


class _NeverUnusable(ReadEndpoint):
    def _check_usable(self) -> None:
        pass


class NeverUnusable(ReadTransport):
    """A closed or broken endpoint goes on as if nothing had happened."""

    endpoint_type = _NeverUnusable


class _ConnectsOnce(ReadEndpoint):
    def _connect(self, peers: Mapping[int, Sequence[Descriptor]]) -> None:
        if not self._peers:
            super()._connect(peers)


class ConnectsOnce(ReadTransport):
    """Descriptors after the first are ignored."""

    endpoint_type = _ConnectsOnce


class _KnowsOneSender(ReadEndpoint):
    def _connect(self, peers: Mapping[int, Sequence[Descriptor]]) -> None:
        super()._connect(dict(list(peers.items())[:1]))


class KnowsOneSender(ReadTransport):
    """Only the first sender can be read from."""

    endpoint_type = _KnowsOneSender


class _RoundsUp(ReadEndpoint):
    def allocate(self, nbytes: int) -> Buffer:
        return super().allocate(-(-nbytes // 4096) * 4096)


class RoundsUp(ReadTransport):
    """Memory comes in whole pages, and says so."""

    endpoint_type = _RoundsUp
