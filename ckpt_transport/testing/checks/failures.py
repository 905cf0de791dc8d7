"""When something is wrong, does everybody hear of it, and is nobody given wrong bytes?"""

from __future__ import annotations

import os
import signal
from functools import partial

from ckpt_transport.errors import TransferError, TransportError
from ckpt_transport.testing.check import check
from ckpt_transport.testing.harness import Broken, Rank, RouteFixture, refuses
from ckpt_transport.transports.interface import Span, Transfer

MIB = 1024**2
REASON = "the reason of rank %d is that this is a test"


@check(
    "abort() ends every outstanding operation, here and at all peers, and the reason reaches them.", "Endpoint.abort"
)
def check_abort_reaches_everyone(rank: Rank) -> None:
    spans = (Span(0, 0, 0, 8 * MIB),)
    for aborts in (1, 0):  # a receiver whose sender never posts, then a sender whose receivers never post
        route = rank.open(regions=(8 * MIB,), inbox=8 * MIB, seed=1)
        reason = REASON % aborts
        transfer = route.transfer(*spans)
        late = rank.number == 0 if aborts == 1 else rank.number != 0
        posted = None if late else route.post(transfer)
        rank.side_channel.meet()
        if rank.number == aborts:
            assert posted is not None
            was_done = aborts == 0 and posted.done()
            route.endpoint.abort(TransferError(reason))
            route.endpoint.abort(TransferError("and only the first one counts"))
            if not was_done:
                _tells(route.fails(posted, transfer, "it was aborted"), reason)
            _refused(route, spans)
        elif posted is not None:
            _tells(route.fails(posted, transfer, f"rank {aborts} has aborted the route"), reason)
        rank.side_channel.meet()  # or the late ones would post what the others wait for
        if late:
            _tells(route.breaks(transfer, 1, f"rank {aborts} has aborted the route"), reason)
        rank.side_channel.meet()


def _refused(route: RouteFixture, spans: tuple[Span, ...]) -> None:
    refuses("a post after abort()", lambda: route.post(route.transfer(*spans)), TransportError)


def _tells(error: BaseException, reason: str) -> None:
    told, link = [], error
    while link is not None:
        told.append(str(link))
        link = link.__cause__ or link.__context__  # type: ignore[assignment]
    if not any(reason in text for text in told):
        raise Broken(f"the route was aborted because '{reason}', and the error says only '{told[0]}'")


@check(
    "When the sender's process is killed, every receiver gets a TransportError, or the bytes if all had arrived.",
    "Completion.done: PeerLostError",
    killed=frozenset({0}),
)
def check_sender_dies(rank: Rank) -> None:
    _one_dies(rank, 0)


@check(
    "When a receiver's process is killed, the sender and the other receivers get a TransportError.",
    "Completion.done: PeerLostError",
    killed=frozenset({2}),
)
def check_receiver_dies(rank: Rank) -> None:
    _one_dies(rank, 2)


def _one_dies(rank: Rank, victim: int) -> None:
    spans = (Span(0, 0, 0, 8 * MIB),)
    route = rank.open(regions=(8 * MIB,), inbox=8 * MIB, seed=1)
    route.carry(route.transfer(*spans), 1)
    if rank.number != victim:
        rank.side_channel.tell("watching", victim)
        rank.side_channel.watch()
    else:
        rank.side_channel.hear("watching")
        rank.side_channel.watch()
        if victim == 0:
            route.post(route.transfer(*spans))
        os.kill(os.getpid(), signal.SIGKILL)
    route.breaks(route.transfer(*spans), 1, f"rank {victim} was killed")
    route.endpoint.close()


@check(
    "A receiver whose record of a transfer differs from the sender's gets a TransportError, and never done.",
    "Transfer",
)
def check_another_plan(rank: Rank) -> None:
    whole = (Span(0, 0, 0, 1000),)
    halves = (Span(0, 0, 0, 500), Span(0, 500, 500, 500))
    swapped = (Span(0, 500, 0, 500), Span(0, 0, 500, 500))
    plans = {
        "fewer bytes": (Transfer(0, 0, (1, 2), whole), Transfer(0, 0, (1, 2), (Span(0, 0, 0, 900),))),
        "more bytes": (Transfer(0, 0, (1, 2), whole), Transfer(0, 0, (1, 2), (Span(0, 0, 0, 1100),))),
        "no bytes": (Transfer(0, 0, (1, 2), whole), Transfer(0, 0, (1, 2), ())),
        "other bytes": (Transfer(0, 0, (1, 2), halves), Transfer(0, 0, (1, 2), swapped)),
        "another place": (Transfer(0, 0, (1, 2), whole), Transfer(0, 0, (1, 2), (Span(0, 0, 9, 1000),))),
        "other spans": (Transfer(0, 0, (1, 2), whole), Transfer(0, 0, (1, 2), halves)),
        "other receivers": (Transfer(0, 0, (1, 2), whole), Transfer(0, 0, (1,), whole)),
        "a later seq": (Transfer(0, 0, (1, 2), whole), Transfer(1, 0, (1, 2), whole)),
        "an earlier seq": (Transfer(1, 0, (1, 2), whole), Transfer(0, 0, (1, 2), whole)),
    }
    for seed, (name, (agreed, different)) in enumerate(plans.items()):
        route = rank.open(regions=(1200,), inbox=1200, seed=seed)
        transfer = different if rank.number == 1 else agreed
        try:
            posted = route.post(transfer)
        except TransportError:
            posted = None
        if posted is not None and rank.number == 1:
            route.fails(posted, transfer, f"its record has {name} than the sender's")
        elif posted is not None:
            route.end(posted, transfer, seed)
        rank.side_channel.meet()


@check(
    "A post out of order, by the wrong rank, or of bytes that no region has, is refused, and nothing else changes.",
    "Endpoint.post_send, Endpoint.post_recv",
)
def check_wrong_posts_are_refused(rank: Rank) -> None:
    size = 5000
    route = rank.open(regions=(size,), inbox=size, seed=1)
    span = Span(0, 1, 2, size - 2)
    route.carry(Transfer(0, 0, (1, 2), (span,)), 1)
    route.carry(Transfer(7, 0, (1, 2), (span,)), 1)
    endpoint, wrong_side = route.endpoint, Transfer(8, 0, (1, 2), (span,))
    for seq in (7, 3):
        refuses(f"transfer {seq} after 7", partial(route.post, Transfer(seq, 0, (1, 2), (span,))), TransportError)
    if rank.number == 0:
        refuses("a receive at the sender", lambda: endpoint.post_recv(wrong_side, route.inbox_region), TransportError)
    else:
        refuses("a send at a receiver", lambda: endpoint.post_send(wrong_side, route.regions), TransportError)
    beyond = Transfer(9, 0, (1, 2), (span, Span(0, size, size, 1)))
    refuses("a span beyond the region", lambda: route.post(beyond), TransportError)
    if rank.number == 0:
        missing = Transfer(10, 0, (1, 2), (span, Span(1, 0, 0, 1)))
        refuses("a span of a region that is not there", lambda: route.post(missing), TransportError)
    rank.side_channel.meet()
    route.carry(Transfer(8, 0, (1, 2), (span,)), 1)
