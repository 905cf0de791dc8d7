"""An update is led in two calls where its caller chooses the moment of the commit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from ckpt_transport.errors import CkptTransportError, TransferTimeout
from ckpt_transport.execution import StageEvent
from ckpt_transport.planning import Plan
from ckpt_transport.update import messages as m
from ckpt_transport.update.coordinator import Coordinator
from ckpt_transport.update.invitations import Invitees
from ckpt_transport.update.progress import Progress, never_raises
from ckpt_transport.update.report import Report
from ckpt_transport.update.shielded import shielded


class StagingCoordinator(Coordinator):
    """Leads an update to where every sink has staged the version, and on when it is told to."""

    _brought: tuple[Plan, Sequence[StageEvent]]
    _commit_before: float
    _waits = False
    """Whether every sink has staged the version, and nothing was asked of it since."""

    def stage(self, myself: m.Join, invitees: Invitees, progress: Progress | None = None) -> None:
        """Bring the version beside what is served, with its digests compared. No forward pass is held.

        Args, Raises: as those of :meth:`Coordinator.lead`.
        """
        self._or_nowhere(lambda: self._stage(myself, invitees, never_raises(progress)))
        self._clock.enter("wait")

    def _stage(self, myself: m.Join, invitees: Invitees, progress: Progress) -> None:
        self._gather(myself, invitees)
        made = self._plan()
        self._brought = made, self._run(made, progress)
        self._commit_before = time.monotonic() + self._config.commit_timeout
        self._steps.keep(self._config.commit_timeout + self._config.update_timeout)
        self._waits = True

    def commit(self, before_hold: Callable[[], None] | None = None) -> Report:
        """Have every sink serve what it has staged.

        Args, Raises: as those of :meth:`Coordinator.lead`.
        """

        def commit() -> Report:
            self._apply_in_time(before_hold or (lambda: None))
            return self._conclude(*self._brought)

        report = self._or_nowhere(commit)
        self._clock.enter("")
        return report

    def _apply_in_time(self, before_hold: Callable[[], None]) -> None:
        """Nothing is held before all have said once more that they wait."""
        now, self._waits = time.monotonic(), False
        self._members.go_on_until(now + self._config.update_timeout)
        if now > self._commit_before:
            raise TransferTimeout(
                f"what was staged was not committed within {self._config.commit_timeout:g} s (commit_timeout)"
            )
        self._clock.enter("agree")
        self._steps.keep(self._config.update_timeout)
        self._apply(before_hold)

    def drop(self, cause: CkptTransportError) -> None:
        """Have every sink let go of it, unless the update has ended. Whoever cannot be reached does so by itself."""
        if self._rolls_back or self._members.turn.decided:
            return
        with contextlib.suppress(CkptTransportError):
            interrupt = self._dismiss(cause)
            if not self._rolls_back:
                interrupt = self._roll_back(cause)[1] or interrupt
            if interrupt is not None:
                raise interrupt

    def _dismiss(self, cause: CkptTransportError) -> BaseException | None:
        """Have all keep what they have found out, where all wait and none must hear why, as other source ranks must."""
        if self._members.fellows or not self._waits:
            return None
        timeout = self._config.heartbeat_timeout
        (left, inside), outside = shielded(lambda: self._steps.dismiss_surely(timeout), self._members.hurry)
        self._rolls_back = left
        if left:
            for invited, welcome in self._members.welcomes(self._members.dismissed):
                self._welcomes.remember(invited, welcome)
            self._tell_failed(cause, cause)
        return outside or inside

    @property
    def _wants_staged(self) -> bool:
        return True

    @property
    def _must_be_staged(self) -> bool:
        return True
