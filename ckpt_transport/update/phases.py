"""Phases follow each other without a gap, so what they took adds up to the whole."""

from __future__ import annotations

import time
from typing import Self


class PhaseClock:
    """Measures the phases of one update, from the caller's call to its return.

    Args:
        phase: the first one.

    Attributes:
        phases: seconds that each phase took, in the order in which they began; of the one that runs until it ends.
    """

    def __init__(self, phase: str = "begin") -> None:
        self.phases: dict[str, float] = {}
        self._phase, self._since = phase, time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the caller's call."""
        return sum(self.phases.values()) + time.monotonic() - self._since

    def enter(self, phase: str) -> None:
        """End the phase that runs and begin another, or go on with one that was left."""
        now = time.monotonic()
        self.phases[self._phase] = self.phases.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def belongs_to(self, phase: str, seconds: float) -> None:
        """So much of the phase that runs was another one, as far as it has run for so long; one of no time was none."""
        took = min(max(0.0, seconds), time.monotonic() - self._since)
        if took:
            self.phases[phase] = self.phases.get(phase, 0.0) + took
            self._since += took

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.enter("")
