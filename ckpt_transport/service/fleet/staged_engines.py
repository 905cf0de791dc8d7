"""Running engines have a version beside what they serve, until its owner has it committed or dropped."""

from __future__ import annotations

from collections.abc import Callable

from ckpt_transport.errors import CkptTransportError
from ckpt_transport.service.fleet.interface import FleetReport
from ckpt_transport.service.staged_job import StagedJob
from ckpt_transport.update.report import Report


class StagedEngines:
    """The engines of a fleet and their sinks, as rank 0 leads them.

    Args:
        stage: claims all engines, and has their sinks stage the version.
        finish: has all engines serve it, by a call that commits it when they are paused.
        give_up: has those that are still claimed serve what they hold, and lets them go.
    """

    def __init__(
        self,
        stage: Callable[[], StagedJob[Report]],
        finish: Callable[[Callable[[Callable[[], None]], Report]], FleetReport],
        give_up: Callable[[], None],
    ) -> None:
        self._stage, self._finish, self._give_up = stage, finish, give_up
        self._job: StagedJob[Report] | None = None

    def stage(self) -> None:
        """Lead them to where all sinks have staged the version."""
        self._job = self._stage()

    def commit(self, before_hold: Callable[[], None] | None) -> FleetReport:
        """Pause all engines, exchange the two versions, and have them serve on."""
        assert self._job is not None, "nothing is staged"
        job = self._job

        def bring(pause: Callable[[], None]) -> Report:
            def hold() -> None:
                pause()
                if before_hold is not None:
                    before_hold()

            report = job.commit(hold)
            assert report is not None, "who leads gets a report"
            return report

        try:
            return self._finish(bring)
        finally:
            self._give_up()

    def drop(self, cause: CkptTransportError) -> None:
        """Have everybody go on as before."""
        try:
            if self._job is not None:
                self._job.drop()
        finally:
            self._give_up()


class StagedFollowing:
    """The part of a rank above 0, which asks no engine.

    Args:
        stage: follows rank 0 to where all sinks have staged the version.
    """

    def __init__(self, stage: Callable[[], StagedJob[Report]]) -> None:
        self._stage = stage
        self._job: StagedJob[Report] | None = None

    def stage(self) -> None:
        """Follow rank 0 until it waits for the commit."""
        self._job = self._stage()

    def commit(self, before_hold: Callable[[], None] | None) -> None:
        """Follow rank 0 to the end."""
        assert self._job is not None, "nothing is staged"
        self._job.commit()

    def drop(self, cause: CkptTransportError) -> None:
        """Take no part any more."""
        if self._job is not None:
            self._job.drop()
