"""Running one rank's part of a plan: fill, transfer and apply overlap as far as the plan allows.

A few threads share the work. The *pump* posts and polls; it alone touches endpoints, so it is the one thread that
drives them. The caller's thread applies, so that an engine's loader runs where the adapter wants it; what it enqueues
on a device is waited for elsewhere. Where applying only enqueues what a device orders, that thread is the pump, too:
two that take turns at such short work would wait for each other. Fills that take too long to do in passing run on a
thread of their own. Nothing waits without a deadline: ``watch`` is called every 50 ms, and raises when the update has
failed elsewhere or is late.

Where a device can order two steps, a step begins when those before it are *enqueued*: it waits for their fences on its
stream, and nobody on the host. A step ends when its fence has passed, and only then is anything reported of it.
"""

from __future__ import annotations

import gc
import queue
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache

import torch

from ckpt_transport.execution.program import Program, Step
from ckpt_transport.execution.timeline import Event, now
from ckpt_transport.memory import Backing, Fence, drain, fence_on
from ckpt_transport.planning import Bucket, RingUse, StageKind
from ckpt_transport.transport import Completion, Endpoint, MemoryRegion, Receipt

WATCH_SECONDS = 0.05
AHEAD = 16
"""Transfers of a route that are in flight, or received and not applied: so many that neither a device nor a peer waits
for the host, and so few that receiving does not keep this host from applying. Sends that no device orders are posted
when they may."""
DEVICE_POLL_SECONDS = 0.0005
"""How often fences are looked at that nobody waits for."""
HANDED_OVER_BYTES = 256 << 10
"""A fill on the host of less takes about as long as handing it to another thread would."""

Apply = Callable[[Bucket, torch.Tensor], Fence | None]
"""Puts one bucket into the engine: the bucket, and its bytes as a uint8 tensor; returns when they have been read, where
that is enqueued on a device."""


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


Applied = tuple[Step, Fence | None, float]
"""An apply that has returned: when its bytes will have been read, None where they have been; and when it started."""


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
        apply_stream: where ``apply`` enqueues everything that reads the bytes, so that they need not have arrived when
            it is called; None where they must have.
    """

    def __init__(
        self,
        program: Program,
        attachments: Mapping[int, Attachment],
        sources: Sources,
        apply: Apply,
        watch: Callable[[], None],
        idle: Callable[[float], object],
        wake: Callable[[], None],
        progress: Callable[[int], None],
        apply_stream: torch.cuda.Stream | None = None,
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
        self._filling: deque[tuple[Step, Future[tuple[float, Fence | None]]]] = deque()
        self._filled: deque[tuple[Step, Fence, float]] = deque()
        self._receipts: dict[int, Receipt] = {}
        self._landed: dict[int, torch.Tensor] = {}
        """Of buckets of several runs, where they are received."""
        self._unapplied: dict[int, set[int]] = {route: set() for route in attachments}
        """Of each route, the buckets that have been received and not applied."""
        self._applied_here = {step.bucket for step in self._applies}
        self._to_apply: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._driving = threading.Lock()
        """Held by the thread that drives endpoints, where that may be another while a bucket is applied."""
        self._applied: deque[Applied | BaseException] = deque()
        self._reading: deque[Applied] = deque()
        self._marks: defaultdict[int, dict[Step, Fence]] = defaultdict(dict)
        """Of each stage, the steps that are enqueued on a device and have not ended."""
        self._marked = dict.fromkeys(attachments, 0)
        """Of the transfers of a route that are in flight, how many, from the oldest on, have a mark."""
        sent, received = self._streams(sends=True), self._streams(sends=False)
        self._fill_stream = None if sources.ring is None or sources.ring.is_cpu else _fill_stream(sources.ring.device)
        self._orders_fills = self._fill_stream is not None and None not in sent
        self._apply_stream = None if None in received else apply_stream

    def run(self) -> list[Event]:
        """Run to the end and return what was recorded.

        Raises: whatever ended it early; then operations may be outstanding, and the endpoints must be aborted.
        """
        with _no_collections():
            self._run()
        return self.events

    def _streams(self, *, sends: bool) -> set[torch.cuda.Stream | None]:
        """The streams of the endpoints that this rank sends through, or receives."""
        return {
            self._attachments[step.leg.route].endpoint.stream
            for step in self._program.steps
            if step.leg is not None and (step.leg.sender == self._program.rank) == sends
        }

    def _run(self) -> None:
        if not self._applies:
            self._pump()
            return
        if self._apply_stream is not None:
            with self._guarded():
                self._pump()
            return
        pump = threading.Thread(target=self._pump_beside, name="ckpt-transport-pump", daemon=True)
        pump.start()
        try:
            with ThreadPoolExecutor(1, "ckpt-transport-fence") as waiter:
                self._apply_all(waiter)
        except BaseException as error:
            self._give_back(error)
            pump.join()
            if isinstance(error, Exception) and self._failure not in (None, error):
                raise self._failure from error
            raise
        finally:
            pump.join()

    # -- the caller's thread ------------------------------------------------------------------------------------

    def _apply_all(self, waiter: ThreadPoolExecutor) -> None:
        while (step := self._to_apply.get()) is not None:
            if self._failure is not None:
                raise self._failure
            _, end, started = applied = self._apply_step(step)
            if end is None:
                self._give_back(applied)
            else:
                waiter.submit(self._read_after, step, end, started)
        if self._failure is not None:
            raise self._failure

    def _apply_step(self, step: Step) -> Applied:
        started = now()
        return step, self._apply(self._program.plan.buckets[step.bucket], self._bytes_of(step.bucket)), started

    def _bytes_of(self, bucket: int) -> torch.Tensor:
        """A bucket that has been received. Its runs lie in a slot one behind the other, and are read as one."""
        return self._landed[bucket] if bucket in self._landed else self._receipts[bucket].views()[0]

    def _read_after(self, step: Step, fence: Fence, started: float) -> None:
        try:
            fence.synchronize()
        except Exception as error:
            self._give_back(error)
        else:
            self._give_back((step, None, started))

    def _give_back(self, applied: Applied | BaseException) -> None:
        """Have the pump see what has become of a bucket."""
        self._applied.append(applied)
        self._wake()

    # -- the guard, where the caller's thread is the pump, too ----------------------------------------------------

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """See to it that an apply which waits for a transfer does not do so for ever, should that not end."""
        over = threading.Event()
        guard = threading.Thread(target=self._guard, args=(over,), name="ckpt-transport-guard", daemon=True)
        self._driving.acquire()
        guard.start()
        try:
            yield
        finally:
            self._driving.release()
            over.set()
            guard.join()

    def _guard(self, over: threading.Event) -> None:
        while self._failure is None and not over.wait(WATCH_SECONDS):
            if self._driving.acquire(blocking=False):
                try:
                    self._look_around()
                except BaseException as error:
                    self._failure = error
                    self._let_go(error)
                finally:
                    self._driving.release()

    def _look_around(self) -> None:
        self._watch()
        for flying in self._in_flight.values():
            if flying:
                flying[0][1].done()

    def _apply_guarded(self, step: Step) -> Applied:
        self._driving.release()
        try:
            return self._apply_step(step)
        finally:
            self._driving.acquire()
            if self._failure is not None:
                raise self._failure

    # -- the pump -----------------------------------------------------------------------------------------------

    def _pump_beside(self) -> None:
        try:
            self._pump()
        except BaseException as error:
            self._failure = error
        self._to_apply.put(None)

    def _pump(self) -> None:
        try:
            with (
                ThreadPoolExecutor(1, "ckpt-transport-fill") as filler,
                ThreadPoolExecutor(1, "ckpt-transport-filled") as waiter,
            ):
                try:
                    self._pump_until_done(filler, waiter)
                except BaseException as error:
                    self._let_go(error)
                    raise
        finally:
            if self._fill_stream is not None:
                drain(self._fill_stream)

    def _pump_until_done(self, filler: ThreadPoolExecutor, waiter: ThreadPoolExecutor) -> None:
        watched = 0.0
        while self._left:
            if now() - watched > WATCH_SECONDS:
                self._watch()
                watched = now()
            moved = self._advance_fills(filler, waiter)
            for route in self._attachments:
                moved |= self._post(route)
                moved |= self._poll(route)
            moved |= self._advance_applies()
            moved |= self._take_back()
            if not moved:
                self._idle(self._patience())

    def _let_go(self, reason: BaseException) -> None:
        """Fail what a device orders: a fill or an apply may wait there for a transfer that will not end by itself."""
        for attachment in self._attachments.values():
            if attachment.endpoint.stream is not None:
                with suppress(Exception):
                    attachment.endpoint.abort(reason)

    def _patience(self) -> float:
        """How long nothing may happen without a message or a wake."""
        flying = (self._attachments[route].endpoint for route, posted in self._in_flight.items() if posted)
        patience = min((endpoint.poll_seconds for endpoint in flying), default=WATCH_SECONDS)
        unseen = self._reading or (self._filled and self._orders_fills)
        return min(patience, DEVICE_POLL_SECONDS) if unseen else patience

    def _ready(self, step: Step, *, ordered: bool) -> Sequence[Fence] | None:
        """What a device must see the end of before a step; None when the step may not even be enqueued.

        Args:
            step: the step.
            ordered: what the step does is ordered by a device.
        """
        fences: list[Fence] = []
        for earlier in self._program.needs[step.stage]:
            if earlier in self._left:
                marks = self._marks[earlier]
                if not ordered or len(marks) < self._left[earlier]:
                    return None
                fences += marks.values()
        return fences

    def _advance_fills(self, filler: ThreadPoolExecutor, waiter: ThreadPoolExecutor) -> bool:
        moved = False
        while self._fills and (free := self._ready(self._fills[0], ordered=self._orders_fills)) is not None:
            step = self._fills.popleft()
            moved = True
            if self._fills_in_passing(self._program.plan.buckets[step.bucket]):
                self._take_filled(step, *self._fill(step, free), waiter)
                continue
            filled = filler.submit(self._fill, step, free)
            filled.add_done_callback(lambda _: self._wake())
            self._filling.append((step, filled))
        while self._filling and self._filling[0][1].done():
            step, future = self._filling.popleft()
            self._take_filled(step, *future.result(), waiter)
            moved = True
        while self._filled and self._filled[0][1].query():
            step, _, started = self._filled.popleft()
            self._finish(step, started)
            moved = True
        return moved

    def _fills_in_passing(self, bucket: Bucket) -> bool:
        """Whether a fill takes about as long as handing it to another thread would."""
        if self._fill_stream is None:
            return bucket.nbytes < HANDED_OVER_BYTES
        return self._sources.extents[bucket.extent].only_enqueues

    def _take_filled(self, step: Step, started: float, end: Fence | None, waiter: ThreadPoolExecutor) -> None:
        if end is None:
            self._finish(step, started)
            return
        self._marks[step.stage][step] = end
        self._filled.append((step, end, started))
        if not self._orders_fills:
            waiter.submit(self._wake_after, end)

    def _fill(self, step: Step, free: Sequence[Fence]) -> tuple[float, Fence | None]:
        """Put a bucket into its slot, when that is free; return when that started, and when it ends, None for now.

        One thread at a time does this: what a device fills is only enqueued here, so that it has the next one when one
        ends.
        """
        started, plan = now(), self._program.plan
        bucket, ring = plan.buckets[step.bucket], plan.ring(self._program.rank, RingUse.FILL)
        assert ring is not None
        assert self._sources.ring is not None
        start = bucket.fill_slot * ring.slot_bytes
        slot = self._sources.ring[start : start + bucket.nbytes]
        if self._fill_stream is None:
            self._fill_slot(slot, bucket)
            return started, None
        for fence in free:
            fence.wait(self._fill_stream)
        with torch.cuda.stream(self._fill_stream):
            self._fill_slot(slot, bucket)
        return started, fence_on(self._fill_stream)

    def _wake_after(self, end: Fence) -> None:
        """Have the pump see that a fill has ended; or why it has not, which its fence tells the pump, too."""
        try:
            end.synchronize()
        finally:
            self._wake()

    def _fill_slot(self, slot: torch.Tensor, bucket: Bucket) -> None:
        backing = self._sources.extents[bucket.extent]
        for run in bucket.runs:
            backing.fill(slot[run.bucket_offset : run.bucket_offset + run.nbytes], run.offset)

    def _post(self, route: int) -> bool:
        waiting, attachment = self._transfers[route], self._attachments[route]
        stream = attachment.endpoint.stream
        moved = False
        while waiting and (self._ahead(route) < AHEAD or (stream is None and self._sends(waiting[0]))):
            before = self._ready(waiting[0], ordered=stream is not None)
            if before is None:
                break
            if stream is not None:
                for fence in before:
                    fence.wait(stream)
            step = waiting.popleft()
            transfer = self._program.transfer(step, attachment.next_seq)
            attachment.next_seq += 1
            completion: Completion
            if self._sends(step):
                completion = attachment.endpoint.post_send(transfer, attachment.lent)
            else:
                completion = self._receipts[step.bucket] = attachment.endpoint.post_recv(transfer, attachment.landing)
                if len(transfer.spans) > 1:
                    assert attachment.landing is not None
                    nbytes = self._program.plan.buckets[step.bucket].nbytes
                    self._landed[step.bucket] = attachment.landing.slice(transfer.spans[0].local, nbytes)
            self._in_flight[route].append((step, completion, now()))
            moved = True
        return moved

    def _ahead(self, route: int) -> int:
        return len(self._in_flight[route]) + len(self._unapplied[route])

    def _sends(self, step: Step) -> bool:
        return step.leg is not None and step.leg.sender == self._program.rank

    def _poll(self, route: int) -> bool:
        """Take in what has ended, oldest first: transfers of a route end about in the order they were posted."""
        flying = self._in_flight[route]
        moved = False
        while flying and flying[0][1].done():
            step, _, posted = flying.popleft()
            self._marked[route] = max(self._marked[route] - 1, 0)
            self._finish(step, posted)
            if self._sends(step):
                self._progress(self._program.plan.buckets[step.bucket].nbytes)
            elif step.bucket in self._applied_here:
                self._unapplied[route].add(step.bucket)
            moved = True
        return self._mark_transfers(route) or moved

    def _mark_transfers(self, route: int) -> bool:
        """Take in which transfers are enqueued on a device by now, oldest first."""
        flying, before = self._in_flight[route], self._marked[route]
        if self._attachments[route].endpoint.stream is None:
            return False
        while self._marked[route] < len(flying):
            step, completion, _ = flying[self._marked[route]]
            end = completion.fence()
            if end is None:
                break
            self._marks[step.stage][step] = end
            self._marked[route] += 1
        return self._marked[route] > before

    def _advance_applies(self) -> bool:
        moved = False
        stream = self._apply_stream
        while self._applies and (arrivals := self._ready(self._applies[0], ordered=stream is not None)) is not None:
            step = self._applies.popleft()
            if stream is None:
                self._to_apply.put(step)
            else:
                for arrival in arrivals:
                    arrival.wait(stream)
                self._applied.append(self._apply_guarded(step))
            moved = True
        return moved

    def _take_back(self) -> bool:
        moved = False
        while self._applied:
            applied = self._applied.popleft()
            if isinstance(applied, BaseException):
                raise applied
            step, end, _ = applied
            if end is not None:
                self._marks[step.stage][step] = end
            self._reading.append(applied)
            moved = True
        while self._reading and self._has_read(*self._reading[0][:2]):
            step, _, started = self._reading.popleft()
            self._receipts.pop(step.bucket).release()
            self._landed.pop(step.bucket, None)
            for buckets in self._unapplied.values():
                buckets.discard(step.bucket)
            self._progress(self._program.plan.buckets[step.bucket].nbytes)
            self._finish(step, started)
            moved = True
        return moved

    def _has_read(self, step: Step, end: Fence | None) -> bool:
        """Whether the bytes of a bucket have arrived and are not needed any more."""
        return (end is None or end.query()) and self._ready(step, ordered=False) is not None

    def _finish(self, step: Step, started: float) -> None:
        """A step is over."""
        self.events.append(Event(self._program.rank, step.kind, step.bucket, started, now()))
        self._marks[step.stage].pop(step, None)
        self._left[step.stage] -= 1
        if not self._left[step.stage]:
            del self._left[step.stage]


@cache
def _fill_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that only fills use."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


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
