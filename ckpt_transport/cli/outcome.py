"""Commands show in the same words what an update or a rollback did."""

from __future__ import annotations

from collections.abc import Iterable

from ckpt_transport.cli.output import Output
from ckpt_transport.planning import explain
from ckpt_transport.service.fleet import FleetReport
from ckpt_transport.sizes import count
from ckpt_transport.update.report import Report


def show_plan(console: Output, report: Report) -> None:
    """Show which bytes went where, and when."""
    console.print(explain(report.plan), markup=False, highlight=False, soft_wrap=True)
    console.print(report.picture(min(console.width - 32, 100)), markup=False, highlight=False, soft_wrap=True)
    run = f"run took {report.phases.get('run', 0.0):.3f} s, where {report.predicted:.3g} s were expected"
    console.print(f"{run}; {report.slowest_link}", markup=False, highlight=False, soft_wrap=True)


def show(console: Output, report: Report) -> None:
    """Show what sinks serve, and for how long that has held their forward passes."""
    console.print(
        f"{report.version} is served by {count(len(report.paused), 'sink')} after {report.seconds:.3f} s "
        f"({_seconds(report.phases)})"
    )
    for rank, told in sorted(report.apply_summary.items()):
        console.print(f"{report.labels[rank]}: {told}", markup=False, highlight=False, soft_wrap=True)
    if report.in_place:
        console.print(f"it was written in place: {report.in_place}", markup=False, highlight=False, soft_wrap=True)
    if report.paused:
        how = "to exchange what is served" if report.staged else "to write it in place"
        held = max(report.paused.values()) * 1e3
        console.print(f"forward passes were held for at most {held:.0f} ms, {how}", highlight=False)


def show_fleet(console: Output, done: FleetReport) -> None:
    """Show what was done with engines that are driven at their endpoints."""
    console.print(f"steps: {_seconds(done.steps)}", soft_wrap=True, highlight=False)
    for endpoint, held in done.held.items():
        requests = f"requests were held for {held * 1e3:.0f} ms" if held else "requests were not held"
        console.print(f"{endpoint}: {requests}", soft_wrap=True, highlight=False)


def show_problems(console: Output, problems: Iterable[str]) -> None:
    """Show what went wrong when the version was served, one line each."""
    for problem in problems:
        console.print(f"[bold red]problem[/]: {problem}", soft_wrap=True, highlight=False)


def _seconds(steps: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in steps.items())
