"""Tells those who wait that something has changed, whatever is interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

LOOK_SECONDS = 0.1
"""An interrupt may keep whoever rings from ringing, so those who wait look so often by themselves."""


class Bell:
    """Wakes all who wait for a condition. Any thread may call.

    As a condition variable without a lock: one of Python's library stays locked where an interrupt comes while it is
    taken or left.
    """

    def __init__(self) -> None:
        self._waiting: set[SimpleQueue[None]] = set()

    def ring(self) -> None:
        """Have those who wait look again."""
        for waits in tuple(self._waiting):
            waits.put(None)

    def wait(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until ``condition`` holds, for at most so many seconds; whether it does."""
        deadline = None if timeout is None else time.monotonic() + timeout
        waits: SimpleQueue[None] = SimpleQueue()
        try:
            self._waiting.add(waits)
            while not condition():
                left = LOOK_SECONDS if deadline is None else min(deadline - time.monotonic(), LOOK_SECONDS)
                if left <= 0:
                    return False
                try:
                    waits.get(timeout=left)
                except Empty:
                    continue
            return True
        finally:
            self._waiting.discard(waits)
