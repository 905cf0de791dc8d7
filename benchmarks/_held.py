"""Holds an engine for the exchange of a delta as a sink does, and says what each step of that takes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, cast

from ckpt_transport import Engine
from ckpt_transport.update.delta_engine import DeltaEngine

TIMEOUT = 30.0


class Held:
    """Notes how long the steps of each exchange take while forward passes are held.

    Args:
        engine: what serves.

    Attributes:
        engine: the same, for a delta to be exchanged with it.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = cast(Engine, _Noting(engine, self._exchanging))
        self._taken: defaultdict[str, list[float]] = defaultdict(list)
        self._since = 0.0

    def clear(self) -> None:
        """Forget what was noted."""
        self._taken.clear()

    def exchange(self, taking: DeltaEngine) -> float:
        """Hold, exchange and go on; for how many seconds the engine says that forward passes were held."""
        self._since = time.perf_counter()
        taking.hold()
        taking.advance(0, TIMEOUT)
        taking.confirm()
        self._note("stand still")
        taking.exchange()
        self._note("forget what was computed")
        taking.certify()
        self._note("look again")
        return taking.resume()

    def _exchanging(self, exchange: Callable[[], None]) -> None:
        self._note("look")
        exchange()
        self._note("exchange elements")

    def _note(self, step: str) -> None:
        now = time.perf_counter()
        self._taken[step].append(now - self._since)
        self._since = now

    @property
    def steps(self) -> Mapping[str, float]:
        """Seconds of each step, in the middle of those that were noted."""
        return {step: median(taken) for step, taken in self._taken.items()}

    def __str__(self) -> str:
        return ", ".join(f"{step} {seconds * 1e3:.2f}" for step, seconds in self.steps.items()) + " ms"


class _Noting:
    """An engine of which somebody notes when elements are exchanged."""

    def __init__(self, engine: Engine, exchanging: Callable[[Callable[[], None]], None]) -> None:
        self._engine, self._exchanging = engine, exchanging

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def exchange_elements(self, exchange: Callable[[], None]) -> None:
        self._engine.exchange_elements(lambda: self._exchanging(exchange))
