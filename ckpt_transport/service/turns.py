"""Updates of one server come one after the other, in the order in which they were asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ckpt_transport.errors import UsageError
from ckpt_transport.service.call_guard import CallGuard
from ckpt_transport.update.turn import Turn


class Turns:
    """Gives each update of a server its turn, which may outlast the call that has asked for it.

    Args:
        guard: of the server; what it refuses gets no turn.
        alone: there is one source rank. Of several, all wait in one order, so that only the first can be superseded.
    """

    def __init__(self, guard: CallGuard, *, alone: bool) -> None:
        self._guard, self._alone = guard, alone
        self._changed = threading.Condition()
        self._line: list[Turn] = []

    @property
    def waiting(self) -> int:
        """How many wait for the first one to end."""
        return max(len(self._line) - 1, 0)

    @contextmanager
    def one(self, call: str, timeout: float, *, supersede: bool = False) -> Iterator[Turn]:
        """Within the block it is the turn of ``call``, and no other call of the server runs.

        Args:
            call, timeout: as those of :meth:`CallGuard.one`.
            supersede: the updates that have come before end, if they have not held forward passes.

        Raises:
            SupersededError: a newer update has taken the turn.
            UsageError: as :meth:`CallGuard.one`; or this thread has staged a version that would be waited for.
        """
        turn = self.take(call, timeout, supersede=supersede)
        try:
            with self._guard.one(call, timeout):
                yield turn
        finally:
            self.leave(turn)

    def take(self, call: str, timeout: float, *, supersede: bool = False) -> Turn:
        """Wait for a turn, and have it until :meth:`leave`.

        Args, Raises: as those of :meth:`one`.
        """
        self._guard.check()
        self._guard.refuse_inside(call)
        turn = Turn(call)
        with self._changed:
            if not supersede:
                self._refuse_own(call)
            older = self._line if self._alone else self._line[:1]
            ends = [each.supersede(call) for each in older] if supersede else []
            self._line.append(turn)
            self._changed.notify_all()
        try:
            for end in ends:
                end()
            self._wait(turn, timeout)
        except BaseException:
            self.leave(turn)
            raise
        return turn

    def leave(self, turn: Turn) -> None:
        """Let the next have its turn. Idempotent."""
        with self._changed:
            if turn in self._line:
                self._line.remove(turn)
            self._changed.notify_all()

    def _refuse_own(self, call: str) -> None:
        for turn in self._line:
            if turn.is_parked_here:
                raise UsageError(
                    f"{call} would wait for {turn.call}, whose version this thread has not committed: commit it or "
                    "drop it before, or pass supersede=True"
                )

    def _wait(self, turn: Turn, timeout: float) -> None:
        with self._changed:
            came = self._changed.wait_for(lambda: self._line[0] is turn or turn.superseded, timeout)
            turn.check()
            if not came:
                raise UsageError(
                    f"{turn.call} has waited {timeout:g} s for {self._line[0].call} of the same server to end"
                )
