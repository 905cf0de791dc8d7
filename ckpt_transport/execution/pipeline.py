"""The pipeline runs one rank's part of a plan: fill, transfer and apply overlap as far as the plan allows.

A few threads share the work. The *pump* posts and polls; it alone touches endpoints, so it is the one thread that
drives them. The caller's thread applies, so that an engine's loader runs where the adapter wants it; what it enqueues
on a device is waited for elsewhere. Where applying only enqueues what a device orders, that thread is the pump, too:
two that take turns at such short work would wait for each other. Fills that take too long to do in passing run on a
thread of their own. Nobody waits for another rank without a deadline: ``watch`` is called every 50 ms while something
moves or messages come, and every 250 ms while nothing does; it raises when the update has failed elsewhere or is late.

Where a device can order two steps, a step begins when those before it are *enqueued*: it waits for their fences on its
stream, and nobody on the host. A step ends when its fence has passed, and only then is anything reported of it.

What a run is made of knows nothing of the pipeline, so no cycle of references keeps memory of a device when it is over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ckpt_transport.execution.applies import (
    DEVICE_POLL_SECONDS,
    QUIET_SECONDS,
    WATCH_SECONDS,
    Applies,
    AppliesBeside,
    AppliesInOrder,
    Apply,
)
from ckpt_transport.execution.digest_steps import Digests
from ckpt_transport.execution.fills import Fills
from ckpt_transport.execution.schedule import RankSchedule, RankStep
from ckpt_transport.execution.timeline import StageEvent, now
from ckpt_transport.execution.transfers import RouteAttachment, Transfers
from ckpt_transport.memory import no_collections


class Pipeline:
    """Runs one schedule once.

    Args:
        schedule: what to do.
        attachments: for each route of the schedule.
        fills: of the schedule; some may have been done.
        apply: called on the caller's thread, bucket by bucket, in the order of the plan.
        watch: called often; raises to end the run.
        idle: waits up to that many seconds, or until a message arrives, or ``wake`` is called; says whether one
            of these has come.
        wake: ends the wait in ``idle``, from any thread.
        progress: called with the bytes of each bucket this rank has sent or applied.
        apply_stream: where ``apply`` enqueues everything that reads the bytes, so that they need not have arrived when
            it is called; None where they must have.
        digests: what else may have to be right before a bucket is applied.
        given: called on the caller's thread when all buckets were applied, while devices read them, if it is not the
            thread that everything waits for.
    """

    def __init__(
        self,
        schedule: RankSchedule,
        attachments: Mapping[int, RouteAttachment],
        fills: Fills,
        apply: Apply,
        watch: Callable[[], None],
        idle: Callable[[float], bool],
        wake: Callable[[], None],
        progress: Callable[[int], None],
        apply_stream: torch.cuda.Stream | None = None,
        digests: Digests | None = None,
        given: Callable[[], None] = lambda: None,
    ) -> None:
        self._schedule, self._watch, self._idle, self._progress = schedule, watch, idle, progress
        self._digests = Digests() if digests is None else digests
        self._fills = fills
        self._ledger = ledger = fills.ledger
        steps: dict[int, list[RankStep]] = {route: [] for route in attachments}
        received: set[torch.cuda.Stream | None] = set()
        for step in schedule.steps:
            if step.leg is not None:
                steps[step.leg.route].append(step)
                if step.leg.sender != schedule.rank:
                    received.add(attachments[step.leg.route].endpoint.stream)
        self._transfers = [
            Transfers(ledger, steps[route], attachment, progress) for route, attachment in attachments.items()
        ]
        self._applies: Applies
        if apply_stream is None or None in received:
            self._applies = AppliesBeside(ledger, apply, self._digests.admits, wake, given)
        else:
            self._applies = AppliesInOrder(ledger, apply, apply_stream, self._transfers, watch)

    def run(self) -> list[StageEvent]:
        """Run to the end and return what was recorded.

        Raises: whatever ended it early; then operations may be outstanding, and the endpoints must be aborted.
        """
        with no_collections():
            if self._schedule.applied:
                self._applies.run(self._pump)
            else:
                self._pump()
        return self._ledger.events

    def _pump(self) -> None:
        with self._fills:
            try:
                self._pump_until_done()
            except BaseException as error:
                for transfers in self._transfers:
                    transfers.let_go(error)
                raise

    def _pump_until_done(self) -> None:
        watched, quiet = 0.0, False
        while not self._ledger.closed:
            if now() - watched > (QUIET_SECONDS if quiet else WATCH_SECONDS):
                self._watch()
                watched, quiet = now(), True
            moved = self._fills.advance()
            for transfers in self._transfers:
                moved |= transfers.post()
                moved |= transfers.poll()
            moved |= self._applies.advance()
            moved |= self._take_applied()
            self._digests.turn()
            if moved or self._idle(min(self._patience(), QUIET_SECONDS if quiet else WATCH_SECONDS)):
                quiet = False

    def _take_applied(self) -> bool:
        moved = False
        for step, started in self._applies.ended():
            self._ledger.received.pop(step.bucket).receipt.release()
            for transfers in self._transfers:
                transfers.applied(step.bucket)
            self._progress(self._schedule.plan.buckets[step.bucket].nbytes)
            self._ledger.ended(step, started)
            moved = True
        return moved

    def _patience(self) -> float:
        """How long nothing may happen without a message or a wake."""
        polled = (transfers.poll_seconds for transfers in self._transfers)
        patience = min((seconds for seconds in polled if seconds is not None), default=QUIET_SECONDS)
        if self._fills.needs_polling or self._applies.needs_polling:
            return min(patience, DEVICE_POLL_SECONDS)
        return patience
