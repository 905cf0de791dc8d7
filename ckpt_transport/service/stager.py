"""A stager brings versions beside what sinks serve, and knows the job that waits for its commit."""

from __future__ import annotations

from ckpt_transport.config import Config
from ckpt_transport.errors import CkptTransportError
from ckpt_transport.service.asked import Asked
from ckpt_transport.service.asked_versions import AskedVersions
from ckpt_transport.service.call_guard import CallGuard
from ckpt_transport.service.source_updates import SourceUpdates
from ckpt_transport.service.staged_job import StagedJob
from ckpt_transport.service.turns import Turns
from ckpt_transport.service.update_calls import UpdateCalls
from ckpt_transport.update.phases import PhaseClock
from ckpt_transport.update.progress import Progress
from ckpt_transport.update.turn import Turn


class Stager:
    """Carries out :meth:`ParameterServer.stage` on one source rank.

    Args:
        updates: bring versions to sinks.
        turns, guard, calls: of the server.
        asked: what calls have asked for.
        config: settings.
    """

    def __init__(
        self,
        updates: SourceUpdates,
        turns: Turns,
        guard: CallGuard,
        calls: UpdateCalls,
        asked: AskedVersions,
        config: Config,
    ) -> None:
        self._updates, self._turns, self._guard, self._calls = updates, turns, guard, calls
        self._asked, self._timeout = asked, config.update_timeout
        self._job: StagedJob | None = None

    def stage(self, asked: Asked, progress: Progress | None, supersede: bool, turn: Turn) -> StagedJob:
        """See :meth:`ParameterServer.stage`.

        Args:
            asked: what, and to whom.
            progress, supersede: as those of the call.
            turn: of the call.
        """
        clock = PhaseClock()
        job = StagedJob(asked.version, turn, self._turns, self._guard, self._calls.explained, self._timeout)

        def bring() -> StagedJob:
            self._job = job
            self._updates.stage(asked, job, progress, clock, turn)
            turn.park(job.give_way)
            self._asked.has_ended()
            return job

        try:
            self._turns.take(turn, self._timeout, supersede=supersede)
            return self._guard.one(turn.call, self._timeout, bring)
        except BaseException as error:
            try:
                job.abandon(error)
            finally:
                turn.ended = True
                self._turns.pass_on()
                self._asked.has_ended()
            raise

    def end(self, cause: CkptTransportError) -> None:
        """Drop what waits for its commit, if anything does; as :meth:`StagedJob.end`."""
        if self._job is not None:
            self._job.end(cause)
