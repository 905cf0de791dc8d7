"""Fills put buckets into slots before they are sent; the first ones before anybody waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

import torch

from ckpt_transport.execution.applies import DEVICE_POLL_SECONDS, HANDED_OVER_BYTES, WATCH_SECONDS
from ckpt_transport.execution.ledger import Ledger
from ckpt_transport.execution.schedule import RankStep
from ckpt_transport.execution.timeline import now
from ckpt_transport.execution.transfers import RouteAttachment
from ckpt_transport.memory import Backing, Fence, drain, fence_on, stream_for
from ckpt_transport.planning import Bucket, RingUse, StageKind


@dataclass(slots=True)
class FillMemory:
    """The memory that fills read from and write to.

    Attributes:
        extents: by number.
        ring: of slots.
        filled: called with the number of each bucket and its slot, when it has been filled, or in the order of the
            stream on which it is; by any thread. Returns until when the slot must stay as it is, where the next fill
            has to wait for that.
    """

    extents: Mapping[int, Backing] = field(default_factory=dict)
    ring: torch.Tensor | None = None
    filled: Callable[[int, torch.Tensor], Fence | None] = lambda bucket, slot: None


class Fills:
    """Runs the fills of a schedule in their order, driven by the pump.

    Use it as a context: at its end its threads have ended, and so has its work on the device. Fills that take too long
    to do in passing run on a thread. What fills a device's slot is only enqueued; where the
    device also orders the transfers that follow, nobody waits for its end, else another thread does.

    Args:
        ledger: of the schedule.
        attachments: for each route of the schedule.
        sources: what they need.
        wake: has the pump look at fills, from any thread.
    """

    def __init__(
        self,
        ledger: Ledger,
        attachments: Mapping[int, RouteAttachment],
        sources: FillMemory,
        wake: Callable[[], None],
    ) -> None:
        schedule = ledger.schedule
        self.ledger, self._schedule, self._sources, self._wake = ledger, schedule, sources, wake
        self._waiting = deque(step for step in schedule.steps if step.kind is StageKind.FILL)
        self._filling: deque[tuple[RankStep, Future[tuple[float, Fence | None]]]] = deque()
        self._filled: deque[tuple[RankStep, Fence, float]] = deque()
        self._read: dict[int, Fence] = {}
        """Of a slot on a device, until when it is read beside what is sent from it."""
        self._stream = None if sources.ring is None or sources.ring.is_cpu else stream_for("fills", sources.ring.device)
        legs = (step.leg for step in schedule.steps if step.leg is not None and step.leg.sender == schedule.rank)
        ordered = all(attachments[leg.route].endpoint.stream is not None for leg in legs)
        self._ordered = ordered and self._stream is not None
        self._filler = ThreadPoolExecutor(1, "ckpt-transport-fill")
        self._waiter = ThreadPoolExecutor(1, "ckpt-transport-filled")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is under way, start nothing more, and keep no memory. Idempotent."""
        self._filler.shutdown()
        self._waiter.shutdown()
        if self._stream is not None:
            for end in self._read.values():
                end.wait(self._stream)
            drain(self._stream)
        self._sources = FillMemory()

    @property
    def needs_polling(self) -> bool:
        """Whether a fill is under way whose end wakes nobody."""
        return self._ordered and bool(self._filled)

    def run_ahead(self, watch: Callable[[], None], idle: Callable[[float], object]) -> None:
        """Fill the slots there are, because requests are not held yet.

        Where there are fewer slots than buckets, nobody waits for a device that fills them by itself: from then on
        until the first slot is free again it would do nothing.

        Args:
            watch: called often; raises to end the wait.
            idle: waits up to that many seconds, or until a message arrives, or ``wake`` is called.
        """
        while self.advance() or self._is_awaited:
            watch()
            if self._is_awaited:
                idle(DEVICE_POLL_SECONDS if self.needs_polling else WATCH_SECONDS)

    def advance(self) -> bool:
        """Start the fills that may, take in those that have ended; return whether there were any."""
        moved = False
        while self._waiting and (free := self.ledger.ready(self._waiting[0], ordered=self._ordered)) is not None:
            step = self._waiting.popleft()
            moved = True
            if self._is_short(self._schedule.plan.buckets[step.bucket]):
                self._take(step, *self._fill(step, free))
                continue
            filled = self._filler.submit(self._fill, step, free)
            filled.add_done_callback(lambda _: self._wake())
            self._filling.append((step, filled))
        while self._filling and self._filling[0][1].done():
            step, future = self._filling.popleft()
            self._take(step, *future.result())
            moved = True
        while self._filled and self._filled[0][1].query():
            step, _, started = self._filled.popleft()
            self.ledger.ended(step, started)
            moved = True
        return moved

    @property
    def _is_awaited(self) -> bool:
        """Whether a fill is under way whose end is worth waiting for before requests are held."""
        return bool(self._filling) or (bool(self._filled) and not self._waiting)

    def _is_short(self, bucket: Bucket) -> bool:
        """Whether a fill takes about as long as handing it to another thread would."""
        if self._stream is None:
            return bucket.nbytes < HANDED_OVER_BYTES
        return self._sources.extents[bucket.extent].only_enqueues(self._stream.device)

    def _fill(self, step: RankStep, free: Sequence[Fence]) -> tuple[float, Fence | None]:
        """Put a bucket into its slot, when that is free; return when that started, and when it ends, None for now."""
        started, plan = now(), self._schedule.plan
        bucket, ring = plan.buckets[step.bucket], plan.ring(self._schedule.rank, RingUse.FILL)
        assert ring is not None
        assert self._sources.ring is not None
        start = bucket.fill_slot * ring.slot_bytes
        slot = self._sources.ring[start : start + bucket.nbytes]
        if self._stream is None:
            self._fill_slot(slot, step.bucket)
            return started, None
        if (read := self._read.pop(bucket.fill_slot, None)) is not None:
            read.wait(self._stream)
        for fence in free:
            fence.wait(self._stream)
        with torch.cuda.stream(self._stream):
            read = self._fill_slot(slot, step.bucket)
        if read is not None:
            self._read[bucket.fill_slot] = read
        return started, fence_on(self._stream)

    def _fill_slot(self, slot: torch.Tensor, number: int) -> Fence | None:
        bucket = self._schedule.plan.buckets[number]
        backing = self._sources.extents[bucket.extent]
        for part in bucket.ranges:
            backing.fill(slot[part.bucket_offset : part.bucket_offset + part.nbytes], part.offset)
        return self._sources.filled(number, slot)

    def _take(self, step: RankStep, started: float, end: Fence | None) -> None:
        if end is None:
            self.ledger.ended(step, started)
            return
        self.ledger.mark(step, end)
        self._filled.append((step, end, started))
        if not self._ordered:
            self._waiter.submit(self._wake_after, end)

    def _wake_after(self, end: Fence) -> None:
        """Have the pump see that a fill has ended; or why it has not, which its fence tells the pump, too."""
        try:
            end.synchronize()
        finally:
            self._wake()
