"""Transfers move buckets along one route."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ckpt_transport.execution.ledger import Ledger, Received
from ckpt_transport.execution.schedule import RankStep
from ckpt_transport.execution.timeline import now
from ckpt_transport.memory import MemoryRun
from ckpt_transport.transports.interface import Endpoint
from ckpt_transport.transports.operations import Completion, MemoryRegion

AHEAD = 16
"""Transfers of a route that are in flight, or received and not applied: so many that neither a device nor a peer waits
for the host, and so few that receiving does not keep this host from applying. Sends that no device orders are posted
when they may."""


@dataclass(slots=True)
class RouteAttachment:
    """One open route as the pipeline uses it.

    Attributes:
        endpoint: this rank's.
        lent: this rank's regions, when it sends here, in the order of their descriptors.
        landing: the region it receives into; None when it maps the sender's.
        next_seq: the seq of the next transfer; kept between updates.
    """

    endpoint: Endpoint
    lent: Sequence[MemoryRegion] = ()
    landing: MemoryRegion | None = None
    next_seq: int = 0


class Transfers:
    """Posts and polls the transfers of one route in their order, driven by the pump.

    Args:
        ledger: of this rank's schedule.
        steps: those of the route.
        attachment: to the route.
        progress: called with the bytes of each bucket that has been sent.
    """

    def __init__(
        self,
        ledger: Ledger,
        steps: Iterable[RankStep],
        attachment: RouteAttachment,
        progress: Callable[[int], None],
    ) -> None:
        self._ledger, self._schedule, self._attachment, self._progress = ledger, ledger.schedule, attachment, progress
        self._waiting = deque(steps)
        self._in_flight: deque[tuple[RankStep, Completion, float]] = deque()
        self._marked = 0
        """Of the transfers in flight, how many, from the oldest on, have a mark."""
        self._unapplied: set[int] = set()

    @property
    def poll_seconds(self) -> float | None:
        """How long the endpoint may go unpolled; None when nothing is in flight."""
        return self._attachment.endpoint.poll_seconds if self._in_flight else None

    def post(self) -> bool:
        """Post the transfers that may be posted; return whether there were any."""
        endpoint = self._attachment.endpoint
        stream = endpoint.stream
        moved = False
        while self._waiting and (self._ahead < AHEAD or (stream is None and self._sends(self._waiting[0]))):
            before = self._ledger.ready(self._waiting[0], ordered=stream is not None)
            if before is None:
                break
            if stream is not None:
                for fence in before:
                    fence.wait(stream)
            step = self._waiting.popleft()
            self._in_flight.append((step, self._posted(step), now()))
            moved = True
        return moved

    def _posted(self, step: RankStep) -> Completion:
        attachment = self._attachment
        transfer = self._schedule.transfer(step, attachment.next_seq)
        attachment.next_seq += 1
        if self._sends(step):
            return attachment.endpoint.post_send(transfer, attachment.lent)
        receipt = attachment.endpoint.post_recv(transfer, attachment.landing)
        landed = None
        if attachment.landing is not None and len(transfer.spans) > 1:
            first = transfer.spans[0].local
            landed = MemoryRun(0, attachment.landing.slice(first, self._schedule.plan.buckets[step.bucket].nbytes))
        self._ledger.received[step.bucket] = Received(receipt, *self._schedule.runs_received(step), landed)
        return receipt

    def poll(self) -> bool:
        """Take in what has ended, oldest first: transfers of a route end about in the order they were posted."""
        moved = False
        while self._in_flight and self._in_flight[0][1].done():
            step, _, posted = self._in_flight.popleft()
            self._marked = max(self._marked - 1, 0)
            self._ledger.ended(step, posted)
            if self._sends(step):
                self._progress(self._schedule.plan.buckets[step.bucket].nbytes)
            elif step.bucket in self._schedule.applied:
                self._unapplied.add(step.bucket)
            moved = True
        return self._mark() or moved

    def _mark(self) -> bool:
        """Note which transfers are enqueued on a device by now, oldest first."""
        before = self._marked
        if self._attachment.endpoint.stream is None:
            return False
        while self._marked < len(self._in_flight):
            step, completion, _ = self._in_flight[self._marked]
            end = completion.fence()
            if end is None:
                break
            self._ledger.mark(step, end)
            self._marked += 1
        return self._marked > before

    def applied(self, bucket: int) -> None:
        """Note that a bucket, of this route or another, has been applied."""
        self._unapplied.discard(bucket)

    def check(self) -> None:
        """Hear whether the route has failed.

        Raises: why, if it has.
        """
        if self._in_flight:
            self._in_flight[0][1].done()

    def let_go(self, reason: BaseException) -> None:
        """Fail what a device orders: a fill or an apply may wait there for a transfer that will not end by itself."""
        if self._attachment.endpoint.stream is not None:
            with suppress(Exception):
                self._attachment.endpoint.abort(reason)

    @property
    def _ahead(self) -> int:
        return len(self._in_flight) + len(self._unapplied)

    def _sends(self, step: RankStep) -> bool:
        return step.leg is not None and step.leg.sender == self._schedule.rank
