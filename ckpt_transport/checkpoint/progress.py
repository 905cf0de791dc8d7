"""How far a registration is, for who wants to be told."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, in the thread that registers, at the start and whenever bytes are there."""


class ProgressReport:
    """Adds up what is done, for a :data:`Progress`."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self.add(0)

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self._total)


class OpenProgressReport(ProgressReport):
    """The same where nobody knows how much will come: all that is done is all there is."""

    def __init__(self, progress: Progress | None) -> None:
        super().__init__(progress, 0)

    def add(self, nbytes: int) -> None:
        self._total += nbytes
        super().add(nbytes)
