"""The result, for people."""

from __future__ import annotations

from collections.abc import Callable

from examples.live_update.result import AFTER, BEFORE, Comparison, Result
from examples.shared.clients import Summary
from examples.shared.display import Display, milliseconds

PICTURE_MARGIN = 30


def show(display: Display, result: Result, picture: Callable[[int], str]) -> None:
    """Print everything.

    Args:
        display: where to.
        result: of the demonstration.
        picture: draws the timeline in so many columns.
    """
    display.block(result.plan, f"The plan: {result.transport} was chosen")
    display.line(
        f"{result.nbytes / 2**20:,.1f} MiB registered in {milliseconds(result.register_seconds)}, "
        f"updated in {milliseconds(result.update_seconds)}"
    )
    display.block(picture(max(min(72, display.width - PICTURE_MARGIN), 20)), "Timeline: ▒ fill  ░ transfer  █ apply")

    display.heading("Tokens")
    display.line(f"prompt   {_ids(result.prompt)}")
    display.line(f"{BEFORE}       {_ids(result.tokens_before)}")
    display.line(f"{AFTER}       {_ids(result.tokens_after)}")
    if result.tokens_confirmed:
        display.line(f"A model that is read anew from the files of {AFTER}, and not split, gives the same tokens.")

    display.heading("Requests")
    requests = result.requests
    spans = {
        "before": requests.before,
        f"registering {AFTER}": requests.registering,
        "updating": requests.updating,
        "after": requests.after,
    }
    display.table(
        ["", "requests", "failed", "longest", "slowest token", "spanning"],
        [_row(name, summary) for name, summary in spans.items()],
    )
    pauses = ", ".join(f"{label} {milliseconds(seconds)}" for label, seconds in result.paused.items())
    display.line(
        f"spanning: answers that were under way during the update, begun by {BEFORE} and ended by {AFTER}, which "
        "computes all their keys and values anew. No forward pass sees two versions."
    )
    display.line(f"{requests.total} requests in all, {requests.failed} failed. Forward passes were held for: {pauses}")

    display.heading("Bit-exact comparison with the files")
    _comparison(display, result.comparison_before, f"{BEFORE}, before the update")
    _comparison(display, result.comparison_after, f"{AFTER}, after the update")

    display.heading("Result")
    display.line(f"trace for https://ui.perfetto.dev: {result.trace}")
    for problem in result.problems:
        display.line(f"NOT AS PROMISED: {problem}", "bold red")
    if result.ok:
        display.line(f"{AFTER} is served by every worker, no request failed, and every bit is right.", "bold green")


def _row(name: str, summary: Summary) -> list[str]:
    return [
        name,
        str(summary.requests),
        str(summary.failed),
        milliseconds(summary.longest),
        milliseconds(summary.slowest_token),
        str(summary.spanning),
    ]


def _comparison(display: Display, comparison: Comparison, name: str) -> None:
    found = f"{len(comparison.mismatches)} differ" if comparison.mismatches else "all equal"
    display.line(
        f"{name}: {comparison.parameters} parameters of {comparison.workers} workers, "
        f"{comparison.elements:,} elements: {found}",
        "bold red" if comparison.mismatches else "",
    )
    for parameter, elements in comparison.mismatches.items():
        display.line(f"  {parameter}: {elements:,} elements differ", "red")


def _ids(tokens: tuple[int, ...]) -> str:
    return " ".join(f"{token:4}" for token in tokens)
