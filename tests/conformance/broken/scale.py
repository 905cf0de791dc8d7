"""Broken subclasses of the one-sided transport that are right at first, for small transfers, or for one route."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from msgspec import structs

from ckpt_transport.memory import Buffer
from ckpt_transport.transports import Poll, ReadSpan
from ckpt_transport.transports.interface import Control, Descriptor, Group, Transfer
from tests.conformance.transports.one_sided import Address, ReadEndpoint, ReadTransport

MIB = 1024**2


class _FlipsABit(ReadEndpoint):
    def __init__(self, group: Group, control: Control) -> None:
        super().__init__(group, control)
        self._transfers = 0

    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        read_some = super()._read(sender, spans)
        self._transfers += 1
        if self._transfers % 1_000:
            return read_some

        def flip() -> bool:
            if not read_some():
                return False
            spans[0].into[-1] ^= 1
            return True

        return flip


class FlipsABit(ReadTransport):
    """One bit is wrong in every 1,000th transfer."""

    endpoint_type = _FlipsABit


class _TiresOfASlot(ReadEndpoint):
    def __init__(self, group: Group, control: Control) -> None:
        super().__init__(group, control)
        self._uses: Counter[int] = Counter()

    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        slot = spans[0].into.data_ptr() if spans else 0
        self._uses[slot] += 1
        return super()._read(sender, spans if self._uses[slot] < 20 else ())


class TiresOfASlot(ReadTransport):
    """From the 20th use of a slot on, what was in it stays there."""

    endpoint_type = _TiresOfASlot


class _EightRequests(ReadEndpoint):
    """Requests are kept in a table of eight entries, which are used again without a look."""

    def __init__(self, group: Group, control: Control) -> None:
        super().__init__(group, control)
        self._table: list[Sequence[ReadSpan]] = [()] * 8
        self._posted = 0

    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        entry, self._posted = self._posted % 8, self._posted + 1
        self._table[entry] = spans
        read_some: list[Poll] = []

        def read_what_the_table_says() -> bool:
            if not read_some:
                read_some.append(super(_EightRequests, self)._read(sender, self._table[entry]))
            return read_some[0]()

        return read_what_the_table_says


class EightRequests(ReadTransport):
    """With more than eight transfers in flight, some are given the bytes of others."""

    endpoint_type = _EightRequests


class _EightMiBOfASpan(ReadEndpoint):
    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        return super()._read(sender, [replace(span, into=span.into[: 8 * MIB]) for span in spans])


class EightMiBOfASpan(ReadTransport):
    """What a span has beyond 8 MiB does not come."""

    endpoint_type = _EightMiBOfASpan


class _SixtyFourSpans(ReadEndpoint):
    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        return super()._read(sender, spans[:64])


class SixtyFourSpans(ReadTransport):
    """The spans of a list after the 64th are not read."""

    endpoint_type = _SixtyFourSpans


class _ShortCount(ReadEndpoint):
    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        return super()._read(sender, spans[: len(spans) % 2**16])


class ShortCount(ReadTransport):
    """The number of spans is kept in 16 bits."""

    endpoint_type = _ShortCount


class _ThreeMembers(ReadEndpoint):
    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        return super()._read(sender, spans if self.group.index < 3 else ())


class ThreeMembers(ReadTransport):
    """The fourth member of a route, and those after it, receive nothing."""

    endpoint_type = _ThreeMembers


class _OffsetsOf24Bits(ReadEndpoint):
    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        return super()._read(sender, [replace(span, offset=span.offset % 2**24) for span in spans])


class OffsetsOf24Bits(ReadTransport):
    """Offsets are kept in 24 bits."""

    endpoint_type = _OffsetsOf24Bits


class _SwapsTwins(ReadEndpoint):
    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        swapped = list(spans)
        for index in range(0, len(spans) - 1, 2):
            one, other = spans[index : index + 2]
            if one.into.numel() == other.into.numel():
                swapped[index], swapped[index + 1] = replace(one, into=other.into), replace(other, into=one.into)
        return super()._read(sender, swapped)


class SwapsTwins(ReadTransport):
    """Two neighbours of equal size get each other's bytes."""

    endpoint_type = _SwapsTwins


class _ReadsOnce(ReadEndpoint):
    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        seen: set[tuple[Descriptor, int]] = set()
        first_time = []
        for span in spans:
            if (span.descriptor, span.offset) not in seen:
                first_time.append(span)
            seen.add((span.descriptor, span.offset))
        return super()._read(sender, first_time)


class ReadsOnce(ReadTransport):
    """Bytes that two spans of a transfer name are read into the first of them only."""

    endpoint_type = _ReadsOnce


class _OddIsEven(ReadEndpoint):
    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        return super()._read(sender, [replace(span, into=span.into[: span.into.numel() // 2 * 2]) for span in spans])


class OddIsEven(ReadTransport):
    """The last byte of a span of odd length does not come."""

    endpoint_type = _OddIsEven


class _LosesAByteAtPowers(ReadEndpoint):
    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        return super()._read(sender, [replace(span, into=span.into[: self._kept(span)]) for span in spans])

    def _kept(self, span: ReadSpan) -> int:
        nbytes = span.into.numel()
        return nbytes - 1 if nbytes >= 2**16 and nbytes & (nbytes - 1) == 0 else nbytes


class LosesAByteAtPowers(ReadTransport):
    """The last byte of a span is missing where its length is a power of two, from 64 KiB on."""

    endpoint_type = _LosesAByteAtPowers


class _RoundsToLines(ReadEndpoint):
    def _checked(self, sender: int, descriptor: Descriptor) -> Address:
        address = super()._checked(sender, descriptor)
        return Address(address.pid, address.start // 16 * 16, address.nbytes)


class RoundsToLines(ReadTransport):
    """Memory is taken to begin at a multiple of 16 bytes."""

    endpoint_type = _RoundsToLines


class _ShortOfTheEnd(ReadEndpoint):
    def _read(self, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        ends = [min(span.into.numel(), self._end(span.descriptor) - span.offset) for span in spans]
        return super()._read(sender, [replace(s, into=s.into[:end]) for s, end in zip(spans, ends, strict=True) if end])

    def _end(self, descriptor: Descriptor) -> int:
        return self._addresses[descriptor].nbytes // 8 * 8


class ShortOfTheEnd(ReadTransport):
    """The last bytes of a region cannot be read, where it does not end at a whole word."""

    endpoint_type = _ShortOfTheEnd


class _EightBitRegions(ReadEndpoint):
    def _descriptor(self, sender: int, region: int) -> Descriptor:
        return super()._descriptor(sender, region % 2**8)


class EightBitRegions(ReadTransport):
    """The number of a region is kept in eight bits."""

    endpoint_type = _EightBitRegions


class _SixteenBitSeq(ReadEndpoint):
    def _announce(self, transfer: Transfer) -> None:
        super()._announce(structs.replace(transfer, seq=transfer.seq % 2**16))


class SixteenBitSeq(ReadTransport):
    """A sender announces the seq of a transfer in 16 bits."""

    endpoint_type = _SixteenBitSeq


class _OnePeerEach(ReadEndpoint):
    described: dict[int, Sequence[Descriptor]] = {}  # noqa: RUF012
    addresses: dict[Descriptor, Address] = {}  # noqa: RUF012

    def _connect(self, peers: Mapping[int, Sequence[Descriptor]]) -> None:
        super()._connect(peers)
        self.described.update(self._peers)
        self.addresses.update(self._addresses)
        self._peers, self._addresses = self.described, self.addresses


class OnePeerEach(ReadTransport):
    """All routes of a process share what they know of a peer."""

    endpoint_type = _OnePeerEach


class _ForgetsOthers(ReadEndpoint):
    everybody: list[ReadEndpoint] = []  # noqa: RUF012

    def _connect(self, peers: Mapping[int, Sequence[Descriptor]]) -> None:
        super()._connect(peers)
        self.everybody.append(self)

    def _shut(self) -> None:
        for endpoint in self.everybody:
            endpoint._peers = {}
        super()._shut()


class ForgetsOthers(ReadTransport):
    """Closing one route forgets what the others are connected to."""

    endpoint_type = _ForgetsOthers


class _RemembersRegions(ReadEndpoint):
    def __init__(self, group: Group, control: Control) -> None:
        super().__init__(group, control)
        self._first: dict[int, Buffer] = {}

    def _describe(self, buffer: Buffer) -> Descriptor:
        return super()._describe(self._first.setdefault(buffer.nbytes, buffer))


class RemembersRegions(ReadTransport):
    """A region of a size that was registered before is taken to be that one."""

    endpoint_type = _RemembersRegions
