"""A staged job is a version that every sink has beside what it serves, until its owner has it committed or dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, Self, TypeVar

from ckpt_transport.errors import CkptTransportError, UpdateAbortedError, UsageError
from ckpt_transport.service.call_guard import CallGuard
from ckpt_transport.service.turns import Turns
from ckpt_transport.update.turn import Turn

Outcome = TypeVar("Outcome")
Outcome_co = TypeVar("Outcome_co", covariant=True)
Explained = Callable[[str, Callable[[Turn], Outcome | None], Turn], Outcome | None]
"""Acts; an interrupt of that gets the cause that says what has become of the sinks."""


class StagedUpdate(Protocol[Outcome_co]):
    """One source rank's part in an update that waits for its commit."""

    def stage(self) -> None:
        """Go on as far as the moment at which the commit begins."""

    def commit(self, before_hold: Callable[[], None] | None) -> Outcome_co | None:
        """Go on to its end."""

    def drop(self, cause: CkptTransportError) -> None:
        """Have every sink go on with what it serves, unless the update has ended."""


class StagedJob(Generic[Outcome]):
    """Made by the ``stage`` of a server or a fleet. Engines serve the old version until :meth:`commit`.

    Until then nothing is held. As a context it is dropped at the end of the block, unless it was committed. With
    several source ranks all of them make the same calls, and rank 0 says when.

    Attributes:
        version: its name.
    """

    def __init__(
        self, version: str, turn: Turn, turns: Turns, guard: CallGuard, explained: Explained[Outcome], timeout: float
    ) -> None:
        self.version = version
        self._staged: StagedUpdate[Outcome] | None = None
        self._turn, self._turns, self._guard, self._timeout = turn, turns, guard, timeout
        self._explained = explained
        self._why_ended: CkptTransportError = UsageError("")

    def __repr__(self) -> str:
        state = "waits for its commit" if self._staged is not None and not self._turn.ended else "has ended"
        return f"<StagedJob of '{self.version}': {state}>"

    def stage(self, staged: StagedUpdate[Outcome]) -> None:
        """Bring the version to where it waits for its commit. What is left where that fails is :meth:`abandon`'s."""
        self._staged = staged
        staged.stage()

    def abandon(self, why: BaseException) -> None:
        """End, because whoever has asked for it gets an error instead."""
        if self._staged is not None:
            cause = UpdateAbortedError(f"{self._turn.call} was given up ({type(why).__name__}); it changed nothing")
            self._end_alone(why if isinstance(why, CkptTransportError) else cause)

    def commit(self, before_hold: Callable[[], None] | None = None) -> Outcome | None:
        """Have every sink serve the version, or none. Forward passes are held while each exchanges two versions.

        Returns: as the ``update`` of what made it; the phase ``wait`` is how long the version has waited for this.

        Args:
            before_hold: as that of :meth:`ParameterServer.update`.

        Raises:
            SupersededError: a newer update has taken its place; every sink serves the old version, or the newer one.
            UpdateAbortedError: a sink or a source has left since it was staged, it waited for longer than
                ``commit_timeout``, or it failed; every sink serves the old version.
            TaintedError, KeyboardInterrupt: as :meth:`ParameterServer.update`.
            UsageError: it has ended already, the server was closed, or another process made it.
        """
        call = f"commit of '{self.version}'"

        def act() -> Outcome | None:
            staged = self._staged
            if self._turn.ended or staged is None:
                raise self._why_ended
            over = UsageError(f"'{self.version}' was committed already, or failed to be")
            failed = UpdateAbortedError(f"'{self.version}' was not committed; it changed nothing")
            try:
                return staged.commit(before_hold)
            except BaseException:
                staged.drop(failed)
                raise
            finally:
                self._staged, self._why_ended = None, over
                self._turn.ended = True
                self._turns.pass_on()

        return self._explained(call, lambda turn: self._guard.one(call, self._timeout, act), self._turn)

    def drop(self) -> None:
        """Have every sink let go of the version. Nothing else changes, and sinks are free for others. Idempotent.

        Raises:
            UsageError: another process made it, or this thread is in a call of the server.
        """
        if self._turn.ended:
            return
        cause = UpdateAbortedError(f"'{self.version}' was dropped; it changed nothing")
        self._explained(self._call_to_drop, lambda turn: self._end_alone(cause), self._turn)

    def give_way(self) -> None:
        """End, because a newer update has taken the turn."""
        try:
            self._turn.check()
        except CkptTransportError as superseded:
            self._end_alone(superseded)

    @property
    def _call_to_drop(self) -> str:
        return f"drop of '{self.version}'"

    def _end_alone(self, cause: CkptTransportError) -> None:
        """End it when no other call of the server runs."""
        self._guard.one(self._call_to_drop, self._timeout, lambda: self.end(cause))

    def end(self, cause: CkptTransportError) -> None:
        """Drop it, unless it has ended; the caller has the server to itself.

        Args:
            cause: what who commits it later is told.
        """
        if self._turn.ended:
            return
        try:
            if self._staged is not None:
                self._staged.drop(cause)
        finally:
            self._staged, self._why_ended = None, cause
            self._turn.ended = True
            self._turns.pass_on()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._turn.ended and self._guard.here:
            self.drop()
