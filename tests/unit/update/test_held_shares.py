"""What sinks need is read once, as long as they say the same of it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from ckpt_transport import Config
from ckpt_transport.control import Mailbox
from ckpt_transport.control.messages import Refused
from ckpt_transport.memory import StridedRange
from ckpt_transport.planning import Manifest, Role, Share
from ckpt_transport.planning.values.block_order import BlockOrder
from ckpt_transport.service import questions as q
from ckpt_transport.update import messages as m
from ckpt_transport.update.held_shares import ShareEncoder, ShareReader
from ckpt_transport.update.introduction import topology_of, with_share
from ckpt_transport.update.invitations import Invitations, Invitees
from ckpt_transport.update.membership import Membership
from ckpt_transport.update.plan_cache import PlanCache
from ckpt_transport.update.turn import Turn
from tests.patience import DEADLINE, PATIENT
from tests.unit.update.test_invitations import hear, join


def share(first: int = 0) -> Share:
    return Share("digest", (("rows", first, 64), ("columns", 0, 256)), (("columns", StridedRange(first, 8, 4, 64)),))


def said(encoder: ShareEncoder, needed: Share | None) -> m.Join:
    """What a sink says, as it is when a coordinator has read it."""
    whole = msgspec.structs.replace(join(Role.SINK, "sink"), needs=encoder.encode(needed))
    return msgspec.msgpack.decode(msgspec.msgpack.encode(whole), type=m.Join)


def test_given_steps_of_sinks_that_need_the_same_then_their_share_is_encoded_and_decoded_once() -> None:
    needed, encoders, reader = share(), [ShareEncoder(), ShareEncoder()], ShareReader()
    read = []
    for _ in range(3):
        reader.begin()
        joins = [with_share(said(encoder, needed), reader) for encoder in encoders]
        assert len(topology_of(joins).shares) == 1
        read += [each.share for each in joins]
    assert read == [needed] * 6
    assert len(set(map(id, read))) == 1
    assert encoders[0].encode(needed) is encoders[0].encode(needed)


def test_given_a_sink_that_needs_something_else_than_before_then_it_is_read_anew_and_the_other_is_forgotten() -> None:
    reader, encoder = ShareReader(), ShareEncoder()
    first = with_share(said(encoder, share()), reader).share
    for needed in (share(8), share(16), None):
        reader.begin()
        assert with_share(said(encoder, needed), reader).share == needed
    again = with_share(said(encoder, share()), reader).share
    assert again == first
    assert again is not first


@pytest.mark.parametrize("needs", [b"\xc1", msgspec.msgpack.encode(["digest", 1])])
def test_given_bytes_that_are_no_share_then_who_says_them_is_refused_and_the_next_word_counts(needs: bytes) -> None:
    config = Config.load(**PATIENT)
    with (
        Mailbox(types=q.COORDINATOR, interval=0.1) as leader,
        Mailbox(types=q.PARTICIPANT) as sink,
        ThreadPoolExecutor(1) as threads,
    ):
        members = Membership("u", leader, config, time.monotonic() + DEADLINE, Turn("an update"))
        invitations = Invitations(members, leader, config, Invitees(1, (sink.address,)))
        gathered = threads.submit(invitations.gather, join(Role.SOURCE, "zeroth"))
        sink.send(leader.address, m.Challenge("u", sink.address, "sink"))
        while hear(sink, m.Invite).nonce != "sink":
            pass
        good = msgspec.structs.replace(join(Role.SINK, "sink", sink.address), needs=ShareEncoder().encode(share()))
        sink.send(leader.address, msgspec.structs.replace(good, needs=needs))
        assert "what sink needs cannot be read" in hear(sink, Refused).reason
        sink.send(leader.address, good)
        gathered.result(DEADLINE)
        assert members.joins[1].share == share()


def test_given_a_planned_share_then_an_engine_that_needs_more_or_less_by_now_is_known() -> None:
    plans, own = PlanCache(1 << 20), share()
    by_columns = Manifest(
        "v",
        (),
        (),
        ordered=(
            BlockOrder("columns", tuple(StridedRange(low, high - low, 4, 64) for low, high in ((0, 8), (8, 64)))),
        ),
    )
    for manifest in (Manifest("v", (), ()), by_columns):
        planned = own.in_order(manifest.ordered) if manifest.ordered else share()
        for _ in range(2):
            assert plans.is_needed(planned, own, manifest)
        for other in (share(8), None):
            assert not plans.is_needed(planned, other, manifest)
        assert plans.is_needed(planned, own, manifest)
