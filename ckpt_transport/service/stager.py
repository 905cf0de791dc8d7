"""A stager brings versions beside what sinks serve, and knows the job that waits for its commit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

from ckpt_transport.errors import CkptTransportError
from ckpt_transport.service.call_guard import CallGuard
from ckpt_transport.service.staged_job import Explained, Outcome, StagedJob
from ckpt_transport.service.turns import Turns
from ckpt_transport.update.turn import Turn


class Stager(Generic[Outcome]):
    """Carries out the ``stage`` of a server or a fleet.

    Args:
        turns, guard: of its calls.
        explained: see :data:`Explained`.
        after: called when a version is staged, or could not be.
        timeout: in seconds, for the calls that have come before.
    """

    def __init__(
        self,
        turns: Turns,
        guard: CallGuard,
        explained: Explained[Outcome],
        after: Callable[[], None],
        timeout: float,
    ) -> None:
        self._turns, self._guard, self._explained = turns, guard, explained
        self._after, self._timeout = after, timeout
        self._job: StagedJob[Outcome] | None = None

    def stage(
        self, version: str, bring: Callable[[StagedJob[Outcome]], None], turn: Turn, *, supersede: bool
    ) -> StagedJob[Outcome]:
        """Stage a version when it is its turn.

        Args:
            version: its name.
            bring: stages it by :meth:`StagedJob.stage`.
            turn: of the call.
            supersede: as that of :meth:`Turns.take`.
        """
        job = StagedJob(version, turn, self._turns, self._guard, self._explained, self._timeout)

        def act() -> StagedJob[Outcome]:
            self._job = job
            bring(job)
            turn.park(job.give_way)
            self._after()
            return job

        try:
            self._turns.take(turn, self._timeout, supersede=supersede)
            return self._guard.one(turn.call, self._timeout, act)
        except BaseException as error:
            try:
                job.abandon(error)
            finally:
                turn.ended = True
                self._turns.pass_on()
                self._after()
            raise

    def end(self, cause: CkptTransportError) -> None:
        """Drop what waits for its commit, if anything does; as :meth:`StagedJob.end`."""
        if self._job is not None:
            self._job.end(cause)
