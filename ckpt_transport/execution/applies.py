"""Applies give buckets to the engine, on the caller's thread, in the order of the plan."""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from ckpt_transport.execution.ledger import Ledger
from ckpt_transport.execution.schedule import RankStep
from ckpt_transport.execution.timeline import now
from ckpt_transport.execution.transfers import Transfers
from ckpt_transport.memory import Fence, Runs
from ckpt_transport.planning import Bucket, StageKind

WATCH_SECONDS = 0.05
"""How often somebody looks whether the run must end."""
QUIET_SECONDS = 0.25
"""The same where nothing has moved and no message has come since the last look: what is left to see is that a peer
shows no sign of life, or a deadline."""
DEVICE_POLL_SECONDS = 0.001
"""How often fences are looked at that nobody waits for."""
HANDED_OVER_BYTES = 256 << 10
"""A fill, an apply or a digest on the host of less takes about as long as handing it to another thread would."""

Apply = Callable[[Bucket, Runs], Fence | None]
"""Puts one bucket into the engine: the bucket, and its bytes; returns when they have been read, where that is enqueued
on a device."""

Admit = Callable[[int, Runs], bool]
"""Whether a bucket that has arrived may be applied: its number and its bytes. Asked again until it may."""

Applied = tuple[RankStep, Fence | None, float]
"""An apply that has returned: when its bytes will have been read, None if that was before; and when it started."""


class Applies(ABC):
    """Runs the applies of a schedule.

    Args:
        ledger: of the schedule.
        apply: called for one bucket after the other.
    """

    def __init__(self, ledger: Ledger, apply: Apply) -> None:
        self._ledger, self._apply = ledger, apply
        self._waiting = deque(step for step in ledger.schedule.steps if step.kind is StageKind.APPLY)
        self._reading: deque[Applied] = deque()
        self._failure: BaseException | None = None

    @abstractmethod
    def run(self, pump: Callable[[], None]) -> None:
        """Apply while ``pump`` runs; returns or raises when both have ended."""

    @abstractmethod
    def advance(self) -> bool:
        """Called by the pump: apply or hand over what may be, take in what has been; return whether anything was."""

    @property
    def needs_polling(self) -> bool:
        """Whether bytes are being read whose end wakes nobody."""
        return bool(self._reading)

    def ended(self) -> Iterator[tuple[RankStep, float]]:
        """Those that are over, oldest first: the bytes have arrived and are not needed any more; and their start.

        Enter each into the ledger before taking the next, which may wait for it.
        """
        while self._reading:
            step, end, started = self._reading[0]
            if (end is not None and not end.query()) or self._ledger.ready(step, ordered=False) is None:
                return
            self._reading.popleft()
            yield step, started

    def _apply_step(self, step: RankStep) -> Applied:
        started = now()
        bucket = self._ledger.schedule.plan.buckets[step.bucket]
        return step, self._apply(bucket, self._ledger.received[step.bucket].runs), started


class AppliesBeside(Applies):
    """Applied beside the pump, which gets a thread of its own, when bytes have arrived: a loader may take its time.

    Args:
        ledger, apply: as for :class:`Applies`.
        admits: asked by the pump, in the order of the plan.
        wake: has the pump look at applies, from any thread.
        given: called when all buckets were applied, which devices may still be reading.
    """

    def __init__(
        self, ledger: Ledger, apply: Apply, admits: Admit, wake: Callable[[], None], given: Callable[[], None]
    ) -> None:
        super().__init__(ledger, apply)
        self._admits, self._wake, self._given = admits, wake, given
        self._last = self._waiting[-1] if self._waiting else None
        self._handed_over: queue.SimpleQueue[RankStep | None] = queue.SimpleQueue()
        self._given_back: deque[Applied | BaseException] = deque()

    def run(self, pump: Callable[[], None]) -> None:
        beside = threading.Thread(target=self._pump, args=(pump,), name="ckpt-transport-pump", daemon=True)
        beside.start()
        try:
            with ThreadPoolExecutor(1, "ckpt-transport-fence") as waiter:
                self._apply_all(waiter)
        except BaseException as error:
            self._give_back(error)
            beside.join()
            if isinstance(error, Exception) and self._failure not in (None, error):
                raise self._failure from error
            raise
        finally:
            beside.join()
            self._failure = None

    def advance(self) -> bool:
        moved = False
        while self._waiting and self._may_be_applied(self._waiting[0]):
            self._handed_over.put(self._waiting.popleft())
            moved = True
        while self._given_back:
            applied = self._given_back.popleft()
            if isinstance(applied, BaseException):
                raise applied
            self._reading.append(applied)
            moved = True
        return moved

    def _may_be_applied(self, step: RankStep) -> bool:
        if self._ledger.ready(step, ordered=False) is None:
            return False
        return self._admits(step.bucket, self._ledger.received[step.bucket].runs)

    def _pump(self, pump: Callable[[], None]) -> None:
        try:
            pump()
        except BaseException as error:
            self._failure = error
        self._handed_over.put(None)

    def _apply_all(self, waiter: ThreadPoolExecutor) -> None:
        while (step := self._handed_over.get()) is not None:
            if self._failure is not None:
                raise self._failure
            _, end, started = applied = self._apply_step(step)
            if end is not None:
                waiter.submit(self._read_after, step, end, started)
            elif self._handed_over.empty() or not self._is_short(step):
                self._give_back(applied)
            else:
                self._given_back.append(applied)
            if step is self._last:
                self._given()
        if self._failure is not None:
            raise self._failure

    def _is_short(self, step: RankStep) -> bool:
        """Whether the pump, which would take longer to wake than this bucket took, is told with the next ones."""
        return self._ledger.schedule.plan.buckets[step.bucket].nbytes < HANDED_OVER_BYTES

    def _read_after(self, step: RankStep, end: Fence, started: float) -> None:
        try:
            end.synchronize()
        except Exception as error:
            self._give_back(error)
        else:
            self._give_back((step, None, started))

    def _give_back(self, applied: Applied | BaseException) -> None:
        """Have the pump see what has become of a bucket."""
        self._given_back.append(applied)
        self._wake()


class AppliesInOrder(Applies):
    """Enqueued by the pump, on the caller's thread, before bytes have arrived: a device orders both.

    A loader may look at a value nevertheless, and then waits for a transfer. So that it does not do so for ever, a
    *guard* looks around in the pump's place while a bucket is applied.

    Args:
        ledger, apply: as for :class:`Applies`.
        stream: where everything that reads the bytes is enqueued.
        transfers: that may fail meanwhile.
        watch: raises when the run must end.
    """

    def __init__(
        self,
        ledger: Ledger,
        apply: Apply,
        stream: torch.cuda.Stream,
        transfers: Sequence[Transfers],
        watch: Callable[[], None],
    ) -> None:
        super().__init__(ledger, apply)
        self._stream, self._transfers, self._watch = stream, transfers, watch
        self._driving = threading.Lock()
        """Held by the thread that may touch endpoints."""

    def run(self, pump: Callable[[], None]) -> None:
        over = threading.Event()
        guard = threading.Thread(target=self._guard, args=(over,), name="ckpt-transport-guard", daemon=True)
        self._driving.acquire()  # for good: the guard, which would be kept out, is gone when this returns
        guard.start()
        try:
            pump()
        finally:
            over.set()
            guard.join()
            self._failure = None

    def advance(self) -> bool:
        moved = False
        while self._waiting and (arrivals := self._ledger.ready(self._waiting[0], ordered=True)) is not None:
            step = self._waiting.popleft()
            for arrival in arrivals:
                arrival.wait(self._stream)
            _, end, _ = applied = self._apply_guarded(step)
            if end is not None:
                self._ledger.mark(step, end)
            self._reading.append(applied)
            moved = True
        return moved

    def _apply_guarded(self, step: RankStep) -> Applied:
        self._driving.release()
        try:
            try:
                applied = self._apply_step(step)
            finally:
                self._driving.acquire()
        except Exception as error:
            if self._failure is not None:
                raise self._failure from error
            raise
        if self._failure is not None:
            raise self._failure
        return applied

    def _guard(self, over: threading.Event) -> None:
        while self._failure is None and not over.wait(WATCH_SECONDS):
            if self._driving.acquire(blocking=False):
                try:
                    self._watch()
                    for transfers in self._transfers:
                        transfers.check()
                except BaseException as error:
                    self._failure = error
                    for transfers in self._transfers:
                        transfers.let_go(error)
                finally:
                    self._driving.release()
