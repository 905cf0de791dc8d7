"""Does done() mean what it says: the sender may overwrite, the receiver may read?"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from msgspec import structs

from ckpt_transport.testing.check import check
from ckpt_transport.testing.harness import POLLS, Rank, RouteFixture
from ckpt_transport.transports.interface import Span, Transfer
from ckpt_transport.transports.operations import Completion, Receipt

MIB = 1024**2


@check(
    "A send is done only when the sender may overwrite the memory, however slow the receivers are.", "Completion.done"
)
def check_source_may_overwrite(rank: Rank) -> None:
    size = 2 * MIB + 3
    route = rank.open(regions=(size,), inbox=size)
    for seed, moment in enumerate(("not posted", "not polled", "not released")):
        transfer = route.transfer(Span(0, 0, 0, size))
        route.fill(seed)
        rank.side_channel.meet()
        if rank.number == 0:
            _overwrite_when_done(route, transfer)
            continue
        posted = None if moment == "not posted" else route.post(transfer)
        if posted is not None and moment == "not released":
            route.wait(posted, transfer)
        rank.side_channel.tell("there", 0)
        rank.side_channel.hear("look", 0)
        route.complete(posted or route.post(transfer), transfer, seed)


def _overwrite_when_done(route: RouteFixture, transfer: Transfer) -> None:
    """The sender's side: its memory changes in the very moment in which its send says done."""
    posted = route.post(transfer)
    overwritten = False

    def overwrite() -> bool:
        nonlocal overwritten
        if not overwritten and posted.done():
            route.sources[0].tensor.fill_(0)
            overwritten = True
        return overwritten

    _look_when(route, transfer.receivers, overwrite, "the receivers to get as far as they can")
    route.side_channel.until(overwrite, "the send to be done, since every receiver has read and released it")


def _look_when(route: RouteFixture, receivers: tuple[int, ...], overwrite: Callable[[], bool], reached: str) -> None:
    """Overwrite what may be until all receivers are there, and hard from then on; then have them look."""
    side_channel, slow = route.side_channel, set(receivers)

    def all_there() -> bool:
        overwrite()
        slow.difference_update([rank for rank in slow if side_channel.heard("there", rank) is not None])
        return not slow

    side_channel.until(all_there, reached)
    for _ in range(POLLS):
        overwrite()
        side_channel.listen()
    side_channel.tell("look")


@check(
    "A send of memory that is not reused is done only when its receivers have released it, too, and at the latest when "
    "they have released everything; 40 transfers are given back in two halves.",
    "Transfer.reused",
)
def check_given_back_together(rank: Rank) -> None:
    slot, count = 4096 + 1, 40
    route = rank.open(regions=(count * slot,), inbox=count * slot)
    transfers = [structs.replace(route.transfer(Span(0, i * slot, i * slot, slot)), reused=False) for i in range(count)]
    route.fill(1)
    rank.side_channel.meet()
    posted = [route.post(transfer) for transfer in transfers]
    if rank.number == 0:
        _overwrite_those_done(route, posted, transfers)
        return
    received = list(zip(posted, transfers, strict=True))
    for receipt, transfer in received:
        route.wait(receipt, transfer)
    for receipt, transfer in received[: count // 2]:
        route.compare(receipt, transfer, 1)
        receipt.release()
    rank.side_channel.tell("there", 0)
    rank.side_channel.hear("look", 0)
    for receipt, transfer in received[count // 2 :]:
        route.compare(receipt, transfer, 1)
        receipt.release()


def _overwrite_those_done(route: RouteFixture, posted: list[Receipt], transfers: list[Transfer]) -> None:
    """The sender's side: what each send has sent changes in the very moment in which it says done."""
    flying = deque(zip(posted, transfers, strict=True))

    def overwrite() -> bool:
        while flying and flying[0][0].done():
            span = flying.popleft()[1].spans[0]
            route.sources[0].tensor[span.offset : span.offset + span.nbytes].fill_(0)
        return not flying

    _look_when(route, transfers[0].receivers, overwrite, "the receivers to release the first half")
    route.side_channel.until(overwrite, "all sends to be done, since every receiver has released everything")


@check("A receive is done only when all of its bytes can be read.", "Completion.done")
def check_receive_is_complete(rank: Rank) -> None:
    size, count = 4 * MIB + 1, 3
    route = rank.open(regions=(size * count,), inbox=size * count, seed=1)
    half = size // 2
    for i in range(count):
        at = size * i
        route.carry(route.transfer(Span(0, at, at, half), Span(0, at + half, at + half, size - half)), 1)
    transfers = [route.transfer(Span(0, size * i, size * (count - 1 - i), size)) for i in range(count)]
    posted = [route.post(transfer) for transfer in transfers]
    for receipt, transfer in zip(posted, transfers, strict=True):
        route.complete(receipt, transfer, 1)


@check(
    "With a ring of two slots, no slot is overwritten before the slowest receiver has released it.", "Receipt.release"
)
def check_back_pressure(rank: Rank) -> None:
    slot, count = 64 * 1024 + 1, 20
    route = rank.open(regions=(2 * slot,), inbox=2 * slot)
    transfers = [route.transfer(Span(0, i % 2 * slot, i % 2 * slot, slot)) for i in range(count)]
    if rank.number == 0:
        _send_through_ring(route, transfers)
    else:
        _receive_through_ring(route, transfers, slow=rank.number == 2)


def _send_through_ring(route: RouteFixture, transfers: list[Transfer]) -> None:
    side_channel, receivers = route.side_channel, transfers[0].receivers
    polls = 0

    def done(completion: Completion) -> bool:
        """Answers a receiver that holds a slot only after having tried hard to get that slot back."""
        nonlocal polls
        if completion.done():
            polls = 0
            return True
        polls += 1
        if polls > POLLS // 5:
            answer()
        return False

    def answer() -> None:
        for receiver in receivers:
            if side_channel.heard("is it still mine?", receiver) is not None:
                side_channel.tell("yes", receiver)

    posted: list[Receipt] = []
    for i in range(len(transfers) + 2):
        if i >= 2:
            side_channel.until(lambda i=i: done(posted[i - 2]), f"slot {i % 2} to be free")  # type: ignore[misc]
        if i < len(transfers):
            route.fill(i, transfers[i])
            posted.append(route.post(transfers[i]))
    finished: set[int] = set()

    def all_finished() -> bool:
        answer()
        finished.update(receiver for receiver in receivers if side_channel.heard("finished", receiver) is not None)
        return len(finished) == len(receivers)

    side_channel.until(all_finished, "the receivers to finish")


def _receive_through_ring(route: RouteFixture, transfers: list[Transfer], *, slow: bool) -> None:
    side_channel = route.side_channel
    posted = [route.post(transfer) for transfer in transfers[:2]]
    for i, transfer in enumerate(transfers):
        route.wait(posted[i], transfer)
        route.compare(posted[i], transfer, i)
        if slow:
            side_channel.tell("is it still mine?", 0)
            side_channel.hear("yes", 0)
            route.compare(posted[i], transfer, i)
        posted[i].release()
        if i + 2 < len(transfers):
            posted.append(route.post(transfers[i + 2]))
    side_channel.tell("finished", 0)


@check("A receive whose sender has not posted is not done; it ends well when the sender comes late.", "Completion.done")
def check_late_sender(rank: Rank) -> None:
    size = 100_003
    route = rank.open(regions=(size,), inbox=size)
    for seed in range(2):
        route.fill(seed)
        transfer = route.transfer(Span(0, 0, 0, size), Span(0, 1, 1, 0))
        if rank.number == 0:
            rank.side_channel.hear("polled")
            route.carry(transfer, seed)
        else:
            posted = route.post(transfer)
            route.stays_open(posted, transfer, "its sender has not posted it")
            rank.side_channel.tell("polled", 0)
            route.complete(posted, transfer, seed)
        rank.side_channel.meet()
