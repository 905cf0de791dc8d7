"""The calls of a source rank that change what sinks serve."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ckpt_transport.service.asked_versions import AskedVersions
from ckpt_transport.service.interrupted import explained
from ckpt_transport.service.turns import Turns
from ckpt_transport.update.phases import PhaseClock
from ckpt_transport.update.turn import Turn

Result = TypeVar("Result")


class UpdateCalls:
    """Makes each call in its turn, measures it, and has an interrupt say what has become of the sinks.

    Args:
        rank: of the source.
        turns: of its calls.
        asked: what calls have asked for.
        after: called on rank 0 when an update has ended, in whatever way.
        timeout: in seconds, for the calls that have come before.
    """

    def __init__(
        self, rank: int, turns: Turns, asked: AskedVersions, after: Callable[[], None], timeout: float
    ) -> None:
        self._rank, self._turns, self._asked, self._after, self._timeout = rank, turns, asked, after, timeout

    def in_turn(self, call: str, act: Callable[[Turn, PhaseClock], Result], *, supersede: bool = False) -> Result:
        """Make a call that is one update.

        Args:
            call: in words.
            act: makes the update.
            supersede: as that of :meth:`Turns.take`.

        Returns: what ``act`` does.
        """

        def update(turn: Turn, clock: PhaseClock) -> Result:
            return self.take_turn(turn, partial(act, turn, clock), supersede=supersede)

        return self.measured(call, update)

    def take_turn(self, turn: Turn, update: Callable[[], Result], *, supersede: bool) -> Result:
        """Make the update of a call when it is its turn."""

        def take() -> Result:
            try:
                return update()
            finally:
                if self._rank == 0:
                    self._after()

        return self._turns.one(turn, self._timeout, take, supersede=supersede)

    def measured(self, call: str, act: Callable[[Turn, PhaseClock], Result], phase: str = "begin") -> Result:
        """Make a call whose first phase has that name."""

        def act_on_clock(turn: Turn) -> Result:
            try:
                with PhaseClock(phase) as clock:
                    return act(turn, clock)
            finally:
                self._asked.has_ended()

        return self.explained(call, act_on_clock)

    def explained(self, call: str, act: Callable[[Turn], Result], turn: Turn | None = None) -> Result:
        """As :func:`~ckpt_transport.service.interrupted.explained`; ranks above 0 do not know what sinks serve."""
        return explained(call, act, turn) if self._rank == 0 else act(turn or Turn(call))
