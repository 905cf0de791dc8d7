"""Where a device orders transfers: do they wait for what comes before, and does what waits for them see their bytes?"""

from __future__ import annotations

import torch

from ckpt_transport.memory import fence
from ckpt_transport.testing.check import check
from ckpt_transport.testing.harness import Broken, Rank, RouteFixture
from ckpt_transport.transports.interface import Span, Transfer

NBYTES = 1024**2 + 5
LATE_CYCLES = 200_000_000
"""Of a GPU's clock: about a tenth of a second."""


@check(
    "Where an endpoint has a stream, a transfer begins after what that was made to wait for, and ends at its fence.",
    "Endpoint.stream, Completion.fence",
)
def check_a_device_orders(rank: Rank) -> None:
    route = rank.open(regions=(NBYTES,), inbox=NBYTES, seed=1)
    stream = route.endpoint.stream
    for seed in (2, 3):
        transfer = route.transfer(Span(0, 0, 0, NBYTES))
        if stream is None:
            _without(route, transfer)
        elif transfer.sender == rank.number:
            _send_late(route, transfer, seed, stream)
        else:
            _receive_in_order(route, transfer, seed, stream)
        rank.side_channel.meet()


def _without(route: RouteFixture, transfer: Transfer) -> None:
    posted = route.post(transfer)
    route.wait(posted, transfer)
    if posted.fence() is not None:
        raise Broken("a completion has a fence, and its endpoint has no stream that would order it")
    posted.release()


def _send_late(route: RouteFixture, transfer: Transfer, seed: int, stream: torch.cuda.Stream) -> None:
    """Post a send of bytes that will be there when the device has slept."""
    beside = torch.cuda.Stream(stream.device)  # type: ignore[no-untyped-call]
    bytes_to_send = route.pattern(seed, 0).to(stream.device)
    torch.cuda.synchronize(stream.device)
    with torch.cuda.stream(beside):
        torch.cuda._sleep(LATE_CYCLES)  # type: ignore[no-untyped-call]
        route.sources[0].tensor.copy_(bytes_to_send)
        written = fence(stream.device)
    assert written is not None
    written.wait(stream)
    posted = route.post(transfer)
    route.wait(posted, transfer)


def _receive_in_order(route: RouteFixture, transfer: Transfer, seed: int, stream: torch.cuda.Stream) -> None:
    """Enqueue a copy of the bytes as soon as their arrival is enqueued."""
    beside = torch.cuda.Stream(stream.device)  # type: ignore[no-untyped-call]
    posted = route.post(transfer)
    route.side_channel.until(lambda: posted.done() or posted.fence() is not None, "a receive to be enqueued")
    arrived = posted.fence()
    if arrived is None:
        raise Broken("a receive is done and has no fence, although its endpoint has a stream")
    arrived.wait(beside)
    with torch.cuda.stream(beside):
        copy = posted.views()[0].clone()
    beside.synchronize()
    route.same(copy, route.pattern(seed, 0), "the copy of a receive that was enqueued behind it")
    route.wait(posted, transfer)
    posted.release()
