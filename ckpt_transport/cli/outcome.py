"""Commands tell what an update or a rollback did, in words for people or in JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol

import msgspec
from rich.text import Text

from ckpt_transport.cli.output import Output
from ckpt_transport.planning import explain, for_people, summarize
from ckpt_transport.service.fleet import FleetReport
from ckpt_transport.sizes import duration
from ckpt_transport.update.report import Report

TELLING_SECONDS = 0.05
"""What is expected of bytes alone says nothing of a shorter run, whose messages and threads take longer than that."""
MEASURES = "'ckpt-transport transports --measure' measures them"


class Teller(Protocol):
    """Tells what happens, and what came of it.

    Attributes:
        console: for what is said on the way.
    """

    console: Output

    def update(self, report: Report) -> None:
        """Sinks that are given by their addresses were updated."""

    def fleet(self, done: FleetReport) -> None:
        """Engines that are driven at their endpoints were updated."""

    def rollback(self, report: Report) -> None:
        """Sinks that are given by their addresses serve the version before again."""

    def fleet_rollback(self, done: FleetReport) -> None:
        """Engines that are driven at their endpoints serve the version before again."""

    def end(self, problems: Iterable[str]) -> None:
        """It is over; these things went wrong when the version was served."""


class Words:
    """Tells it on standard output, in words."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Output(quiet=quiet)

    def update(self, report: Report) -> None:
        self._plan(report)
        self.rollback(report)

    def fleet(self, done: FleetReport) -> None:
        self._plan(done.update)
        self.fleet_rollback(done)

    def rollback(self, report: Report) -> None:
        """Tell what sinks serve, and for how long that has held their forward passes."""
        self._line(str(report))

    def fleet_rollback(self, done: FleetReport) -> None:
        """Tell the same, and what was done with the engines."""
        self._line(str(replace(done, problems=())))

    def end(self, problems: Iterable[str]) -> None:
        for problem in problems:
            self.console.print(Text.assemble(("problem", "bold red"), f": {problem}"), soft_wrap=True, highlight=False)

    def _plan(self, report: Report) -> None:
        """Tell which bytes went where, and whether that took as long as expected."""
        self._line(summarize(report.plan, report.pauses))
        if report.predicted >= TELLING_SECONDS:
            self._ran(report)

    def _ran(self, report: Report) -> None:
        """Tell how long the plan ran, and how long it was expected to."""
        took, predicted = duration(report.phases.get("run", 0.0)), duration(report.predicted)
        how = "" if report.plan.prediction.measured else f" of assumed rates ({MEASURES})"
        slowest = for_people(report.slowest_link, report.plan.topology)
        self._line(f"run took {took}, where {predicted} were expected{how}; {slowest}")

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)


class VerboseWords(Words):
    """Tells also the whole plan, and when each of its stages ran."""

    def _plan(self, report: Report) -> None:
        self._line(explain(report.plan, report.pauses))
        self._line(report.picture(min(self.console.width - 32, 100)))
        self._ran(report)


class Json:
    """Writes one document to standard output when it is over. What is said on the way goes to standard error.

    The document is ``{"updates": [...], "problems": [...]}``: what :meth:`~ckpt_transport.Report.to_dict` says of each
    update, with ``steps`` and ``engines`` where engines are driven.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Output(stderr=True, quiet=quiet)
        self._quiet = quiet
        self._updates: list[dict[str, Any]] = []

    def update(self, report: Report) -> None:
        self._updates.append(report.to_dict())

    def fleet(self, done: FleetReport) -> None:
        self._updates.append(done.to_dict())

    rollback, fleet_rollback = update, fleet

    def end(self, problems: Iterable[str]) -> None:
        if not self._quiet:
            document = {"updates": self._updates, "problems": list(problems)}
            Output().write_bytes(msgspec.json.format(msgspec.json.encode(document)))
