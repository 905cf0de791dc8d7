"""Do regions and endpoints live and end as they should, and leave nothing behind?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from ckpt_transport.errors import EndpointClosedError, RegionBusyError, TransferError, TransportError
from ckpt_transport.memory import Buffer
from ckpt_transport.testing.check import check
from ckpt_transport.testing.checks.probing import CYCLES, holds
from ckpt_transport.testing.harness import Broken, Rank, RouteFixture, refuses
from ckpt_transport.transports.interface import Span

SIZE = 40_009


@check(
    "A region that an operation uses, and an endpoint with operations in flight, cannot be closed.", "RegionBusyError"
)
def check_busy_region(rank: Rank) -> None:
    route = rank.open(regions=(SIZE,), inbox=SIZE, seed=1)
    transfer = route.transfer(Span(0, 0, 0, SIZE))
    if rank.number != 0:
        posted = route.post(transfer)
        if route.inbox_region is not None:
            refuses("closing a region that a receive uses", route.inbox_region.close, RegionBusyError)
        refuses("closing an endpoint with a receive in flight", route.endpoint.close, RegionBusyError)
    rank.side_channel.meet()
    if rank.number == 0:
        posted = route.post(transfer)
        if not posted.done():
            with suppress(RegionBusyError):
                route.regions[0].close()
                if not posted.done():
                    raise Broken("a region was closed while a send that uses it was not done")
    route.complete(posted, transfer, 1)
    rank.side_channel.meet()
    for region in (*route.regions, *([] if route.inbox_region is None else [route.inbox_region])):
        region.close()
        region.close()
    route.endpoint.close()


@check(
    "A closed endpoint refuses everything with EndpointClosedError; closing it again does nothing.", "Endpoint.close"
)
def check_closed_endpoint(rank: Rank) -> None:
    route = rank.open(regions=(SIZE,), inbox=SIZE, seed=1)
    route.carry(route.transfer(Span(0, 0, 0, SIZE)), 1)
    rank.side_channel.meet()
    route.endpoint.close()
    route.endpoint.close()
    route.endpoint.abort(TransferError("too late"))
    for what, action in _uses(route).items():
        refuses(f"{what} after close()", action, EndpointClosedError)


@check(
    "An aborted endpoint refuses everything and says why; its regions and itself can be closed.",
    "Endpoint.abort, EndpointBrokenError",
)
def check_broken_endpoint(rank: Rank) -> None:
    route = rank.open(regions=(SIZE,), inbox=SIZE)
    posted = route.post(route.transfer(Span(0, 0, 0, SIZE))) if rank.number != 0 else None
    rank.side_channel.meet()
    reason = "everybody aborts in this test"
    route.endpoint.abort(TransferError(reason))
    if posted is not None:
        refuses("polling an operation after abort()", posted.done, TransportError)
        posted.release()
    for what, action in _uses(route).items():
        error = refuses(f"{what} after abort()", action, TransportError)
        if isinstance(error, EndpointClosedError):
            raise Broken(f"{what} after abort() raised EndpointClosedError, and nobody has closed it")
        if reason not in str(error) and reason not in str(error.__cause__):
            raise Broken(f"{what} after abort() does not say why the endpoint broke, only '{error}'")
    for region in (*route.regions, *([] if route.inbox_region is None else [route.inbox_region])):
        region.close()
    route.endpoint.close()
    route.endpoint.close()


def _uses(route: RouteFixture) -> dict[str, Callable[[], object]]:
    return {
        "register()": lambda: route.endpoint.register(Buffer.private(100)),
        "connect()": lambda: route.endpoint.connect({}),
        "a post": lambda: route.post(route.transfer(Span(0, 0, 0, 10))),
    }


@check("After connect() with the same, other, more and fewer descriptors, transfers go on.", "Endpoint.connect")
def check_reconnect(rank: Rank) -> None:
    route = rank.open(regions=(SIZE,), inbox=SIZE)
    allocate = route.endpoint.allocate
    for seed, sizes in enumerate(((SIZE,), (SIZE + 5,), (100, 2000, 300), (SIZE,))):
        if seed:
            route.replace(sizes, lambda index, sizes=sizes: allocate(sizes[index]))  # type: ignore[misc]
        for again in range(2):
            route.connect()
            route.fill(2 * seed + again)
            rank.side_channel.meet()
            spans, local = [], 3
            for index, size in enumerate(sizes):
                spans.append(Span(index, 1, local, min(size, 30_000) - 1))
                local += min(size, 30_000)
            route.carry(route.transfer(*spans), 2 * seed + again)
            rank.side_channel.meet()


@check("Opening and closing again and again leaves no descriptor, thread or shared memory behind.", "Endpoint.close")
def check_nothing_leaks(rank: Rank) -> None:
    for _ in range(3):
        _cycle(rank)
    before = holds()
    for _ in range(CYCLES):
        _cycle(rank)
    rank.side_channel.meet()
    now: dict[str, int] = {}

    def given_back() -> bool:
        now.update(holds())
        return all(now[what] < before[what] + CYCLES // 2 for what in before)

    try:
        rank.side_channel.until(given_back, "everything to be given back")
    except Broken as error:
        raise Broken(
            f"after {CYCLES} times open and close the process holds {now}, and before it held {before}"
        ) from error


def _cycle(rank: Rank) -> None:
    route = rank.open(regions=(SIZE,), inbox=SIZE, seed=1)
    route.carry(route.transfer(Span(0, 0, 0, SIZE)), 1)
    rank.close(route)
