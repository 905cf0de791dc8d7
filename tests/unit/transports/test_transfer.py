"""Given a scatter list that comes again, then its record is compared as that of any other."""

from __future__ import annotations

from ckpt_transport.transports.transfer import Span, SpanList, Transfer

SPANS = Span(0, 0, 0, 100), Span(1, 256, 100, 50)


def test_given_a_list_that_is_kept_then_its_record_has_the_digest_of_the_same_spans() -> None:
    kept = SpanList(SPANS)
    for seq in (3, 4):
        assert Transfer(seq, 0, (1, 2), kept).digest == Transfer(seq, 0, (1, 2), SPANS).digest


def test_given_records_that_differ_in_anything_then_their_digests_differ() -> None:
    kept = SpanList(SPANS)
    others = [
        Transfer(3, 0, (1, 2), kept),
        Transfer(4, 0, (1, 2), kept),
        Transfer(3, 1, (1, 2), kept),
        Transfer(3, 0, (1,), kept),
        Transfer(3, 0, (1, 2), kept, reused=False),
        Transfer(3, 0, (1, 2), SpanList(SPANS[::-1])),
        Transfer(3, 0, (1, 2), SpanList(SPANS[:1])),
        Transfer(3, 0, (1, 2), SpanList()),
    ]
    assert len({transfer.digest for transfer in others}) == len(others)
