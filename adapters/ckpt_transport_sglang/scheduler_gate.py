"""Keeps the batches of a SGLang scheduler from weights that change."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from ckpt_transport import Gate
from ckpt_transport_sglang.arrivals import Arrivals

TICK_SECONDS = 0.05
"""How often a scheduler that stands by looks whether its weights have become a mix."""
WAY_SECONDS = 2.0
"""For how long a scheduler without requests makes way before an update and after one. Both are right without it, and
slower."""


class SchedulerGate(Gate):
    """Every batch of a scheduler is a pass through this gate. All ranks of an engine run the same ones, in one order.

    The loop of a scheduler never sleeps, and would take the interpreter from the thread that loads. So it stands by
    where it would ask for requests: while passes are held, and around an update until it is sent something, when there
    is nothing to compute. A tainted gate pauses the scheduler instead of refusing batches, as an exception would
    end the engine; it goes on to answer then.

    Args:
        scheduler: SGLang's. Made on its thread, between two batches.

    Attributes:
        updating: whether an update goes on.
    """

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.updating = self._mixed = self._has_paused = False
        self._makes_way_until = 0.0
        self._scheduler, self._arrivals = scheduler, Arrivals(scheduler)
        scheduler.run_batch = self._through(scheduler.run_batch)
        scheduler.ingest_requests = self._behind(scheduler.ingest_requests)

    def make_way(self) -> None:
        """Leave the interpreter to the sink for a while, as long as there is nothing to compute."""
        self._makes_way_until = time.monotonic() + WAY_SECONDS

    def _through(self, run_batch: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run_batch)
        def gated(*args: Any, **kwargs: Any) -> Any:
            return self.run(run_batch, *args, **kwargs)

        return gated

    def _behind(self, ingest_requests: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(ingest_requests)
        def standing_by(*args: Any, **kwargs: Any) -> Any:
            while not self._mixed and not self.wait_while_held(TICK_SECONDS):
                pass
            self._pause_while_mixed()
            if self._makes_way() and self._has_nothing_to_compute():
                self._arrivals.wait()
            return ingest_requests(*args, **kwargs)

        return standing_by

    def _pause_while_mixed(self) -> None:
        """Have the scheduler run no batch while the weights are a mix. A pause that others have begun is theirs."""
        if self._mixed and not self._scheduler._engine_paused:
            self._scheduler._engine_paused = self._has_paused = True
        elif self._has_paused and not self._mixed:
            self._scheduler._engine_paused = self._scheduler._pause_started_at is not None
            self._has_paused = False

    def _makes_way(self) -> bool:
        return self.updating or time.monotonic() < self._makes_way_until

    def _has_nothing_to_compute(self) -> bool:
        scheduler = self._scheduler
        if scheduler._engine_paused:
            return True
        return bool(scheduler.running_batch.is_empty() and scheduler.last_batch is None and not scheduler.waiting_queue)

    def resume(self) -> float:
        self.updating = self._mixed = False
        self.make_way()
        return super().resume()

    def taint(self, reason: str) -> None:
        """Stay held, until an update succeeds."""
        self.updating, self._mixed = False, True
