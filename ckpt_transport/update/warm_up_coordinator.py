"""A warm-up is an update that ends before anything is held, so that the next one finds everything ready."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ckpt_transport.execution import StageEvent
from ckpt_transport.update import messages as m
from ckpt_transport.update.coordinator import Coordinator
from ckpt_transport.update.ending import tell_ended
from ckpt_transport.update.invitations import Invitees
from ckpt_transport.update.progress import Progress, never_raises
from ckpt_transport.update.report import Report


class WarmUpCoordinator(Coordinator):
    """Leads an update as far as it changes nothing: to where every sink has staged the version, if all can do that.

    What was found out and opened is kept by everybody as after a commit: plan, routes, mapped memory, staging areas.
    """

    kind: ClassVar[str] = "warm-up"
    takes_deltas: ClassVar[bool] = False

    def warm_up(self, myself: m.Join, invitees: Invitees, progress: Progress | None = None) -> Report:
        """Lead it, and have everybody go on as before.

        Args:
            myself, invitees, progress: as those of :meth:`Coordinator.lead`.

        Raises:
            UpdateAbortedError: it failed and changed nothing.
            SupersededError: the same, because an update has taken its turn.
        """
        return self._or_nowhere(lambda: self._warm_up(myself, invitees, never_raises(progress)))

    def _warm_up(self, myself: m.Join, invitees: Invitees, progress: Progress) -> Report:
        self._gather(myself, invitees)
        made = self._plan()
        events: Sequence[StageEvent] = self._run(made, progress) if self._steps.staged else ()
        self._clock.enter("dismiss")
        self._steps.dismiss()
        for invited, welcome in self._members.welcomes(self._members.dismissed):
            self._welcomes.remember(invited, welcome)
        self._clock.enter("end")
        report = self._report(made, events, {}, ())
        tell_ended(self._update, self.kind, "dismissed", report, self._config.history)
        return report

    @property
    def _takes_the_shorter(self) -> bool:
        """What is staged holds nobody here, and finds out what an update in place needs, too."""
        return False
