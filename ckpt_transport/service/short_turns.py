"""Threads of Python take turns, which are shorter while a member has orders to follow that take less than a turn.

A thread that waits for the interpreter asks whoever has it, an engine that decodes say, to give way after 5 ms. A
member waits so each time that a message has come, and what it does then mostly takes less than one.
"""

from __future__ import annotations

import os
import sys
import threading

SHORT_SECONDS = 0.0005
DIGITS = 6
"""Turns are whole microseconds."""


class ShortTurns:
    """Shortens the turns of all threads of this process, as long as somebody wants it.

    Turns that are shorter already, or that somebody else sets meanwhile, stay as they are.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted_by: set[object] = set()
        self._usual: float | None = None

    def want(self, who: object, *, short: bool) -> None:
        """Say whether somebody wants short turns, from any thread; who wanted the same before changes nothing."""
        if (who in self._wanted_by) is short:
            return
        with self._lock:
            (self._wanted_by.add if short else self._wanted_by.discard)(who)
            self._set()

    def _set(self) -> None:
        if self._wanted_by and self._usual is None and sys.getswitchinterval() > SHORT_SECONDS:
            self._usual = sys.getswitchinterval()
            _set_to(SHORT_SECONDS)
        elif self._usual is not None and not self._wanted_by:
            usual, self._usual = self._usual, None
            if round(sys.getswitchinterval(), DIGITS) == SHORT_SECONDS:
                _set_to(usual)

    def end(self) -> None:
        """Nobody wants them any more: in a child after a fork nobody is there who did."""
        self._lock = threading.Lock()
        self._wanted_by.clear()
        self._set()


def _set_to(seconds: float) -> None:
    """Python cuts off what is less than a microsecond, which what it says itself may be by a little."""
    sys.setswitchinterval(seconds + 10**-DIGITS / 2)


short_turns = ShortTurns()
os.register_at_fork(after_in_child=short_turns.end)
