"""Running one rank's part of a plan: fill, transfer and apply overlap as far as the plan allows.

A few threads share the work. The *pump* posts and polls; it alone touches endpoints, so it is the one thread that
drives them. The caller's thread applies, so that an engine's loader runs where the adapter wants it; what it enqueues
on a device is waited for elsewhere. Fills too large to do in passing run on threads that only copy. Nothing waits
without a deadline: the pump calls ``watch`` every 50 ms, which raises when the update has failed elsewhere or is late.
"""

from __future__ import annotations

import gc
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ckpt_transport.execution.program import Program, Step
from ckpt_transport.execution.timeline import Event, now
from ckpt_transport.memory import Backing, Fence
from ckpt_transport.planning import Bucket, RingUse, StageKind
from ckpt_transport.transport import Completion, Endpoint, MemoryRegion, Receipt

WATCH_SECONDS = 0.05
FILL_THREADS = 2
"""So that a device's copy engine has the next fill when one ends."""
POSTS_AT_ONCE = 8
"""So that a long list of receives does not keep the first ones from being polled."""
HANDED_OVER_BYTES = 256 << 10
"""A fill of less takes about as long as handing it to another thread would."""

Apply = Callable[[Bucket, Sequence[torch.Tensor]], Fence | None]
"""Puts one bucket into the engine: the bucket, and its bytes as uint8 tensors, one per span; returns when they have
been read, where that is enqueued on a device."""


@dataclass(slots=True)
class Attachment:
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


@dataclass(slots=True)
class Sources:
    """Memory that fills read from and write to: extents by number, and the ring of slots."""

    extents: Mapping[int, Backing] = field(default_factory=dict)
    ring: torch.Tensor | None = None


class Pipeline:
    """One run of one program.

    Args:
        program: what to do.
        attachments: for each route of the program.
        sources: what fills need.
        apply: called on the caller's thread, bucket by bucket, in the order of the plan.
        watch: called often; raises to end the run.
        idle: waits up to that many seconds, or until a message arrives, or ``wake`` is called.
        wake: ends the wait in ``idle``, from any thread.
        progress: called with the bytes of each bucket this rank has sent or applied.
    """

    def __init__(
        self,
        program: Program,
        attachments: Mapping[int, Attachment],
        sources: Sources,
        apply: Apply,
        watch: Callable[[], None],
        idle: Callable[[float], None],
        wake: Callable[[], None],
        progress: Callable[[int], None],
    ) -> None:
        self.events: list[Event] = []
        self._program, self._attachments, self._sources = program, attachments, sources
        self._apply, self._watch, self._idle, self._wake, self._progress = apply, watch, idle, wake, progress
        self._left = dict.fromkeys(program.needs, 0)
        for step in program.steps:
            self._left[step.stage] += 1
        self._fills = deque(step for step in program.steps if step.kind is StageKind.FILL)
        self._transfers: dict[int, deque[Step]] = {route: deque() for route in attachments}
        for step in program.steps:
            if step.leg is not None:
                self._transfers[step.leg.route].append(step)
        self._applies = deque(step for step in program.steps if step.kind is StageKind.APPLY)
        self._in_flight: dict[int, deque[tuple[Step, Completion, float]]] = {route: deque() for route in attachments}
        self._filling: deque[tuple[Step, Future[float]]] = deque()
        self._receipts: dict[int, Receipt] = {}
        self._to_apply: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._applied: deque[Step | BaseException] = deque()

    def run(self) -> list[Event]:
        """Run to the end and return what was recorded.

        Raises: whatever ended it early; then operations may be outstanding, and the endpoints must be aborted.
        """
        with _no_collections():
            self._run()
        return self.events

    def _run(self) -> None:
        if not self._applies:
            self._pump()
            return
        pump = threading.Thread(target=self._pump_beside, name="ckpt-transport-pump", daemon=True)
        pump.start()
        try:
            with ThreadPoolExecutor(1, "ckpt-transport-fence") as waiter:
                self._apply_all(waiter)
        except BaseException as error:
            self._applied.append(error)
            self._wake()
            raise
        finally:
            pump.join()

    # -- the caller's thread ------------------------------------------------------------------------------------

    def _apply_all(self, waiter: ThreadPoolExecutor) -> None:
        while (step := self._to_apply.get()) is not None:
            if self._failure is not None:
                raise self._failure
            started = now()
            fence = self._apply(self._program.plan.buckets[step.bucket], self._receipts[step.bucket].views())
            if fence is None:
                self._read(step, started)
            else:
                waiter.submit(self._read_after, fence, step, started)
        if self._failure is not None:
            raise self._failure

    def _read_after(self, fence: Fence, step: Step, started: float) -> None:
        try:
            fence.synchronize()
        except Exception as error:
            self._applied.append(error)
            self._wake()
        else:
            self._read(step, started)

    def _read(self, step: Step, started: float) -> None:
        """The bytes of a bucket are not needed any more."""
        self._record(step, started)
        self._applied.append(step)
        self._wake()

    # -- the pump -----------------------------------------------------------------------------------------------

    def _pump_beside(self) -> None:
        try:
            self._pump()
        except BaseException as error:
            self._failure = error
        self._to_apply.put(None)

    def _pump(self) -> None:
        with ThreadPoolExecutor(self._fillers, "ckpt-transport-fill") as filler:
            watched = 0.0
            while self._left:
                if now() - watched > WATCH_SECONDS:
                    self._watch()
                    watched = now()
                moved = self._advance_fills(filler)
                for route in self._attachments:
                    moved |= self._post(route)
                    moved |= self._poll(route)
                moved |= self._hand_over()
                moved |= self._take_back()
                if not moved:
                    self._idle(self._patience())

    @property
    def _fillers(self) -> int:
        ring = self._sources.ring
        return 1 if ring is None or ring.is_cpu else FILL_THREADS

    def _patience(self) -> float:
        """How long nothing may happen without a message or a wake."""
        flying = (self._attachments[route].endpoint for route, posted in self._in_flight.items() if posted)
        return min((endpoint.poll_seconds for endpoint in flying), default=WATCH_SECONDS)

    def _ready(self, step: Step) -> bool:
        return not any(earlier in self._left for earlier in self._program.needs[step.stage])

    def _advance_fills(self, filler: ThreadPoolExecutor) -> bool:
        moved = False
        while self._fills and self._ready(self._fills[0]):
            step = self._fills.popleft()
            moved = True
            if self._program.plan.buckets[step.bucket].nbytes < HANDED_OVER_BYTES:
                self._record(step, self._fill(step))
                self._finish(step)
                continue
            filled = filler.submit(self._fill, step)
            filled.add_done_callback(lambda _: self._wake())
            self._filling.append((step, filled))
        while self._filling and self._filling[0][1].done():
            step, future = self._filling.popleft()
            self._record(step, future.result())
            self._finish(step)
            moved = True
        return moved

    def _fill(self, step: Step) -> float:
        """Put a bucket into its slot; return when that started."""
        started, plan = now(), self._program.plan
        bucket, ring = plan.buckets[step.bucket], plan.ring(self._program.rank, RingUse.FILL)
        assert ring is not None
        assert self._sources.ring is not None
        start = bucket.fill_slot * ring.slot_bytes
        slot = self._sources.ring[start : start + bucket.nbytes]
        self._sources.extents[bucket.extent].fill(slot, bucket.offset)
        return started

    def _post(self, route: int) -> bool:
        waiting, attachment = self._transfers[route], self._attachments[route]
        moved = False
        for _ in range(POSTS_AT_ONCE):
            if not waiting or not self._ready(waiting[0]):
                break
            step = waiting.popleft()
            transfer = self._program.transfer(step, attachment.next_seq)
            attachment.next_seq += 1
            completion: Completion
            if transfer.sender == self._program.rank:
                completion = attachment.endpoint.post_send(transfer, attachment.lent)
            else:
                completion = self._receipts[step.bucket] = attachment.endpoint.post_recv(transfer, attachment.landing)
            self._in_flight[route].append((step, completion, now()))
            moved = True
        return moved

    def _poll(self, route: int) -> bool:
        """Take in what has ended, oldest first: transfers of a route end about in the order they were posted."""
        flying = self._in_flight[route]
        moved = False
        while flying and flying[0][1].done():
            step, _, posted = flying.popleft()
            self._record(step, posted)
            self._finish(step)
            assert step.leg is not None
            if step.leg.sender == self._program.rank:
                self._progress(self._program.plan.buckets[step.bucket].nbytes)
            moved = True
        return moved

    def _hand_over(self) -> bool:
        moved = False
        while self._applies and self._ready(self._applies[0]):
            self._to_apply.put(self._applies.popleft())
            moved = True
        return moved

    def _take_back(self) -> bool:
        moved = False
        while self._applied:
            step = self._applied.popleft()
            if isinstance(step, BaseException):
                raise step
            self._receipts.pop(step.bucket).release()
            self._progress(self._program.plan.buckets[step.bucket].nbytes)
            self._finish(step)
            moved = True
        return moved

    def _finish(self, step: Step) -> None:
        self._left[step.stage] -= 1
        if not self._left[step.stage]:
            del self._left[step.stage]

    def _record(self, step: Step, started: float) -> None:
        self.events.append(Event(self._program.rank, step.kind, step.bucket, started, now()))


@contextmanager
def _no_collections() -> Iterator[None]:
    """Keep the garbage collector away: in an engine's process a full collection stalls every thread, at any time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
