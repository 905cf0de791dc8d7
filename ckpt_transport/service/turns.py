"""Updates of one server come one after the other, in the order in which they were asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from ckpt_transport.errors import UsageError
from ckpt_transport.service.call_guard import CallGuard
from ckpt_transport.update.turn import Turn

Result = TypeVar("Result")
LOOK_SECONDS = 0.1
"""An interrupt may keep whoever ends from telling the next one, who looks so often."""


class Turns:
    """Gives each update of a server its turn, which may outlast the call that has asked for it.

    Args:
        guard: of the server; what it refuses gets no turn.
        alone: there is one source rank. Of several, all wait in one order, so that only the first can be superseded.
        raise_interrupt: raises what another thread has this one interrupted by.
    """

    def __init__(self, guard: CallGuard, *, alone: bool, raise_interrupt: Callable[[], None]) -> None:
        self._guard, self._alone, self._raise_interrupt = guard, alone, raise_interrupt
        self._lock = threading.Lock()
        self._line: list[Turn] = []

    @property
    def waiting(self) -> int:
        """How many wait for the first one to end."""
        return max(len(self._not_ended()) - 1, 0)

    def one(self, turn: Turn, timeout: float, act: Callable[[], Result], *, supersede: bool = False) -> Result:
        """Run ``act`` when it is this turn, and no other call of the server.

        Args:
            turn, timeout, supersede: as those of :meth:`take`.

        Returns: what ``act`` does.

        Raises: as :meth:`take`, and :meth:`CallGuard.one`.
        """
        try:
            self.take(turn, timeout, supersede=supersede)
            return self._guard.one(turn.call, timeout, act)
        finally:
            turn.ended = True
            self.pass_on()

    def take(self, turn: Turn, timeout: float, *, supersede: bool = False) -> None:
        """Wait for this turn. The caller has it until it ends, and ends it also where this raises.

        Args:
            turn: a new one.
            timeout: in seconds, for the turns that have come before.
            supersede: the updates that have come before end, if they have not held forward passes.

        Raises:
            SupersededError: a newer update has taken the turn.
            UsageError: as :meth:`CallGuard.one`; or who calls has staged a version that would be waited for.
        """
        self._guard.check()
        self._guard.refuse_inside(turn.call)
        with self._lock:
            line = self._not_ended()
            if not supersede:
                _refuse_own(line, turn.call)
            older = line if self._alone else line[:1]
            ends = [each.supersede(turn.call) for each in older if supersede or each.superseded]
            self._line = [*line, turn]
        for each in older:
            each.changed.set()
        for end in ends:
            end()
        self._wait(turn, timeout)

    def pass_on(self) -> None:
        """Let the next have its turn, after one has ended."""
        for turn in self._not_ended():
            turn.changed.set()

    def _not_ended(self) -> list[Turn]:
        return [turn for turn in self._line if not turn.ended]

    def _wait(self, turn: Turn, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not turn.superseded and (first := self._not_ended()[0]) is not turn:
            if time.monotonic() > deadline:
                raise UsageError(f"{turn.call} has waited {timeout:g} s for {first.call} of the same server to end")
            self._raise_interrupt()
            turn.changed.wait(LOOK_SECONDS)
            turn.changed.clear()
        turn.check()


def _refuse_own(line: list[Turn], call: str) -> None:
    for turn in line:
        if turn.is_parked_here and not turn.superseded:
            raise UsageError(
                f"{call} would wait for {turn.call}, whose version the same caller has not committed: commit it or "
                "drop it before, or pass supersede=True"
            )
