"""It is decided by what updates have taken whether the next one looks for what has changed, or sends everything."""

from __future__ import annotations

from typing import NamedTuple

from ckpt_transport.update.report import Report

RESTS = 8
"""So many updates bring everything before it is looked at again whether a delta is sooner."""
SENDING = ("base", "plan", "agree", "connect", "run", "hold", "apply")
"""Phases in which a delta is proved and sent, without that in which it is found."""
SENDING_ALL = ("run", "hold", "apply")
"""Those in which everything is, without what only the first update has to do."""


class Cost(NamedTuple):
    """What an update has taken.

    Attributes:
        found: seconds in which what has changed was found.
        sent: seconds in which it was brought.
    """

    found: float
    sent: float


class DeltaCosts:
    """Compares the last update by a delta with the last one that has brought everything."""

    def __init__(self) -> None:
        self._everything: float | None = None
        self._rests, self._why = 0, ""

    def why_everything(self) -> str:
        """Why the next update need not look for what has changed; empty when it should."""
        if not self._rests:
            return ""
        self._rests -= 1
        return f"{self._why}; deltas are looked at again {'in the next update' if not self._rests else 'later'}"

    def sent_everything(self, report: Report) -> None:
        self._everything = sum(report.phases.get(phase, 0.0) for phase in SENDING_ALL)

    def sent_delta(self, report: Report, found: float) -> None:
        """A delta was sent, which took ``found`` seconds to find."""
        sent = sum(report.phases.get(phase, 0.0) for phase in SENDING)
        self.judge(Cost(found, sent))

    def judge(self, delta: Cost) -> None:
        """Have the next updates bring everything, where that is sooner than this delta was."""
        if self._everything is not None and sum(delta) > self._everything:
            self._rest(
                f"everything was sooner: {self._everything:.3g} s, and the last delta took {sum(delta):.3g} s, of them "
                f"{delta.found:.3g} s to find it"
            )

    def too_dense(self, why: str) -> None:
        """So much has changed that a delta was not sent."""
        self._rest(why)

    def _rest(self, why: str) -> None:
        self._rests, self._why = RESTS, why
