"""Do the bytes still arrive after thousands of transfers, with hundreds in flight, among many ranks, beside others?"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ckpt_transport.testing.check import LONG_DEADLINE, check
from ckpt_transport.testing.checks.scale import around
from ckpt_transport.testing.harness import Rank, RouteFixture
from ckpt_transport.transports.interface import Span, Transfer
from ckpt_transport.transports.operations import Receipt

SLOT = 401
SLOTS = 8
HALVES = (200, 1, 64, 17, 199)
"""Bytes of each of the two spans of a transfer, in turn."""
IN_FLIGHT = 257


@check(
    "However many transfers a route has carried, the next one gives its own bytes; 1,100 go through eight slots.",
    "Transfer.seq",
)
def check_transfer_after_transfer(rank: Rank) -> None:
    _run(rank, 1_100)


@check("The same after more than 65,536 transfers.", "Transfer.seq", deadline=LONG_DEADLINE)
def check_transfers_past_16_bits(rank: Rank) -> None:
    _run(rank, 2**16 + 100)


def _run(rank: Rank, count: int) -> None:
    """Send ``count`` transfers, each of two spans of equal size, eight of them in flight."""
    route = rank.open(regions=(SLOTS * SLOT,), inbox=SLOTS * SLOT)
    flying: deque[tuple[Receipt, Transfer, int]] = deque()
    for use in range(count):
        if len(flying) == SLOTS:
            route.complete(*flying.popleft())
        start, nbytes = use % SLOTS * SLOT, HALVES[use // SLOTS % len(HALVES)]
        transfer = route.transfer(Span(0, start + nbytes, start, nbytes), Span(0, start, start + nbytes, nbytes))
        route.fill(use, transfer)
        route.poison(use, transfer)
        flying.append((route.post(transfer), transfer, use))
    while flying:
        route.complete(*flying.popleft())


@check(
    "257 transfers may be in flight, whoever posts first and in whatever order they end, and each gives its own bytes.",
    "Endpoint.post_send, Endpoint.post_recv",
)
def check_many_in_flight(rank: Rank) -> None:
    route = rank.open(regions=(IN_FLIGHT * SLOT,), inbox=IN_FLIGHT * SLOT)
    for use, (sender_waits, order) in enumerate(((True, 1), (False, -1))):
        route.fill(use)
        transfers = [
            route.transfer(Span(0, index * SLOT, (IN_FLIGHT - 1 - index) * SLOT, SLOT - index % 3))
            for index in range(IN_FLIGHT)
        ]
        rank.side_channel.meet()
        sends = rank.number == 0
        posted = [] if sends is sender_waits else _post(route, transfers, use)
        rank.side_channel.meet()
        posted = posted or _post(route, transfers, use)
        for receipt, transfer in list(zip(posted, transfers, strict=True))[::order]:
            route.wait(receipt, transfer)
            route.compare(receipt, transfer, use)
        if not sends:
            for receipt in posted:
                receipt.release()


def _post(route: RouteFixture, transfers: Iterable[Transfer], use: int) -> list[Receipt]:
    posted = []
    for transfer in transfers:
        route.poison(use, transfer)
        posted.append(route.post(transfer))
    return posted


@check("A route may have nine members, and any of them may send to all others.", "Group.ranks", ranks=9)
def check_many_ranks(rank: Rank) -> None:
    _everybody_sends(rank)


@check("A route may have seventeen members.", "Group.ranks", ranks=17, deadline=LONG_DEADLINE)
def check_seventeen_ranks(rank: Rank) -> None:
    _everybody_sends(rank)


def _everybody_sends(rank: Rank) -> None:
    route = rank.open(regions=(SLOT,), inbox=len(rank.ranks) * SLOT, senders=rank.ranks, seed=rank.number)
    for sender in rank.ranks:
        transfer = route.transfer(Span(0, sender % 2, sender * SLOT, SLOT - 1), sender=sender)
        route.carry(transfer, sender)


@check(
    "Two routes of the same ranks do not touch each other: not while both are in use, nor when one is closed.",
    "Transport.open, Endpoint.close",
)
def check_two_routes(rank: Rank) -> None:
    routes = [rank.open(regions=(4 * SLOT,), inbox=4 * SLOT, senders=(0, 1)) for _ in range(2)]
    for turn in range(10):
        posted = [
            (route, *_post_next(route, index, use=2 * turn + which), 2 * turn + which)
            for index in range(4)
            for which, route in enumerate(routes)
        ]
        for route, receipt, transfer, use in posted[:: 1 if turn % 2 else -1]:
            route.complete(receipt, transfer, use)
    rank.close(routes[0])
    for use in range(20, 24):
        routes[1].complete(*_post_next(routes[1], use % 4, use), use)


def _post_next(route: RouteFixture, index: int, use: int) -> tuple[Receipt, Transfer]:
    transfer = route.transfer(Span(0, index * SLOT, (3 - index) * SLOT, SLOT - index), sender=index % 2)
    route.fill(use, transfer)
    route.poison(use, transfer)
    return route.post(transfer), transfer


@check("The seq of a transfer may be any number that is higher than the last, up to 31 bits.", "Transfer.seq")
def check_any_seq(rank: Rank) -> None:
    route = rank.open(regions=(SLOT,), inbox=SLOT)
    for use, seq in enumerate(around(8, 12, 16, 20, 24, 30)):
        transfer = Transfer(seq, 0, rank.ranks[1:], (Span(0, 1, 0, SLOT - 1),))
        route.fill(use, transfer)
        route.carry(transfer, use)
