"""Does done() mean what it says: the sender may overwrite, the receiver may read?"""

from __future__ import annotations

from ckpt_transport.testing.check import check
from ckpt_transport.testing.harness import POLLS, Lane, Rank
from ckpt_transport.transports.interface import Completion, Receipt, Span, Transfer

MIB = 1024**2


@check(
    "A send is done only when the sender may overwrite the memory, however slow the receivers are.", "Completion.done"
)
def check_source_may_overwrite(rank: Rank) -> None:
    size = 2 * MIB + 3
    lane = rank.open(regions=(size,), inbox=size)
    for seed, moment in enumerate(("not posted", "not polled", "not released")):
        transfer = lane.transfer(Span(0, 0, 0, size))
        lane.fill(seed)
        rank.aside.meet()
        if rank.number == 0:
            _overwrite_when_done(lane, transfer)
            continue
        posted = None
        if moment != "not posted":
            posted = lane.post(transfer)
        if moment == "not released":
            assert posted is not None
            lane.wait(posted, transfer)
        rank.aside.tell("there", 0)
        rank.aside.hear("look", 0)
        posted = posted or lane.post(transfer)
        lane.wait(posted, transfer)
        lane.compare(posted, transfer, seed)
        posted.release()


def _overwrite_when_done(lane: Lane, transfer: Transfer) -> None:
    """The sender's side: its memory changes in the very moment in which its send says done."""
    aside, posted = lane.aside, lane.post(transfer)
    slow = set(transfer.receivers)
    overwritten = False

    def overwrite() -> bool:
        nonlocal overwritten
        if not overwritten and posted.done():
            lane.sources[0].tensor.fill_(0)
            overwritten = True
        return overwritten

    def all_there() -> bool:
        overwrite()
        slow.difference_update([rank for rank in slow if aside.heard("there", rank) is not None])
        return not slow

    aside.until(all_there, "the receivers to get as far as they can")
    for _ in range(POLLS):
        overwrite()
        aside.listen()
    aside.tell("look")
    aside.until(overwrite, "the send to be done, since every receiver has read and released it")


@check("A receive is done only when all of its bytes can be read.", "Completion.done")
def check_receive_is_complete(rank: Rank) -> None:
    size, count = 4 * MIB + 1, 3
    lane = rank.open(regions=(size * count,), inbox=size * count)
    lane.fill(1)
    half = size // 2
    for i in range(count):
        at = size * i
        lane.carry(lane.transfer(Span(0, at, at, half), Span(0, at + half, at + half, size - half)), 1)
    transfers = [lane.transfer(Span(0, size * i, size * (count - 1 - i), size)) for i in range(count)]
    posted = [lane.post(transfer) for transfer in transfers]
    for receipt, transfer in zip(posted, transfers, strict=True):
        lane.wait(receipt, transfer)
        lane.compare(receipt, transfer, 1)
        receipt.release()


@check(
    "With a ring of two slots, no slot is overwritten before the slowest receiver has released it.", "Receipt.release"
)
def check_back_pressure(rank: Rank) -> None:
    slot, count = 64 * 1024 + 1, 20
    lane = rank.open(regions=(2 * slot,), inbox=2 * slot)
    transfers = [lane.transfer(Span(0, i % 2 * slot, i % 2 * slot, slot)) for i in range(count)]
    if rank.number == 0:
        _send_through_ring(lane, transfers)
    else:
        _receive_through_ring(lane, transfers, slow=rank.number == 2)


def _send_through_ring(lane: Lane, transfers: list[Transfer]) -> None:
    aside, receivers = lane.aside, transfers[0].receivers
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
            if aside.heard("is it still mine?", receiver) is not None:
                aside.tell("yes", receiver)

    posted: list[Receipt] = []
    for i, transfer in enumerate(transfers):
        if i >= 2:
            aside.until(lambda i=i: done(posted[i - 2]), f"slot {i % 2} to be free")  # type: ignore[misc]
        lane.fill(i, transfer)
        posted.append(lane.post(transfer))
    for last in posted[-2:]:
        aside.until(lambda last=last: done(last), "the last slots to be free")  # type: ignore[misc]
    finished: set[int] = set()

    def all_finished() -> bool:
        answer()
        finished.update(receiver for receiver in receivers if aside.heard("finished", receiver) is not None)
        return len(finished) == len(receivers)

    aside.until(all_finished, "the receivers to finish")


def _receive_through_ring(lane: Lane, transfers: list[Transfer], *, slow: bool) -> None:
    aside = lane.aside
    posted = [lane.post(transfer) for transfer in transfers[:2]]
    for i, transfer in enumerate(transfers):
        lane.wait(posted[i], transfer)
        lane.compare(posted[i], transfer, i)
        if slow:
            aside.tell("is it still mine?", 0)
            aside.hear("yes", 0)
            lane.compare(posted[i], transfer, i)
        posted[i].release()
        if i + 2 < len(transfers):
            posted.append(lane.post(transfers[i + 2]))
    aside.tell("finished", 0)


@check("A receive whose sender has not posted is not done; it ends well when the sender comes late.", "Completion.done")
def check_late_sender(rank: Rank) -> None:
    size = 100_003
    lane = rank.open(regions=(size,), inbox=size)
    for seed in range(2):
        lane.fill(seed)
        transfer = lane.transfer(Span(0, 0, 0, size), Span(0, 1, 1, 0))
        if rank.number == 0:
            rank.aside.hear("polled")
            lane.carry(transfer, seed)
        else:
            posted = lane.post(transfer)
            lane.stays_open(posted, transfer, "its sender has not posted it")
            rank.aside.tell("polled", 0)
            lane.wait(posted, transfer)
            lane.compare(posted, transfer, seed)
            posted.release()
        rank.aside.meet()
