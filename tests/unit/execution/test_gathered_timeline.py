"""A fleet's timeline: put in order when somebody looks, and whole without what cannot be read."""

from __future__ import annotations

import logging

import pytest

from ckpt_transport.execution import GatheredTimeline, StageEvent, encode_events
from ckpt_transport.planning import StageKind

SENT = StageEvent(0, StageKind.TRANSFER, 0, 100.0, 100.5)
FIRST, SECOND = StageEvent(1, StageKind.APPLY, 0, 100.25, 100.3), StageEvent(2, StageKind.APPLY, 0, 99.0, 100.4)


def test_given_what_ranks_have_sent_then_the_timeline_has_all_by_the_time_of_their_beginning() -> None:
    timeline = GatheredTimeline([SENT], {1: encode_events([FIRST]), 2: encode_events([SECOND])})
    assert list(timeline) == [SECOND, SENT, FIRST]
    assert (len(timeline), timeline[0], timeline[1:]) == (3, SECOND, [SENT, FIRST])


@pytest.mark.parametrize("junk", [b"", b"\xc1", encode_events([FIRST])[:-1], encode_events([{"rank": 1}])])
def test_given_a_rank_that_has_sent_junk_then_it_is_named_and_the_others_are_there(
    junk: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert list(GatheredTimeline([SENT], {1: junk, 2: encode_events([SECOND])})) == [SECOND, SENT]
    assert "what rank 1 has recorded" in caplog.text
