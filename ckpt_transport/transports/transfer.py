"""A transfer is the record of what moves: from whom, to whom, and which bytes."""

from __future__ import annotations

import hashlib
from functools import cached_property

import msgspec

_encode = msgspec.msgpack.Encoder().encode


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


class SpanList(tuple[Span, ...]):
    """A scatter list that comes again with each version, of which the digest is computed once."""

    @cached_property
    def digest(self) -> bytes:
        """Of all spans."""
        return _digest_of(tuple(self))


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
        spans = self.spans.digest if isinstance(self.spans, SpanList) else _digest_of(self.spans)
        return int.from_bytes(_digest_of((self.seq, self.sender, self.receivers, self.reused, spans)), "big") >> 1


def _digest_of(said: object) -> bytes:
    return hashlib.blake2b(_encode(said), digest_size=8).digest()
