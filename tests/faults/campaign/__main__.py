"""``python -m tests.faults.campaign``: disturb many updates and print what became of them."""

from __future__ import annotations

import argparse
import collections
import random
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.faults.campaign.campaign import HALVES, Campaign, Outcome, available


def main() -> int:
    """Returns the exit code: 0 when everything held, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__)
    parser.add_argument("--updates", type=int, default=150, help="how many updates are disturbed (default: 150)")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no update after so many (default: 60)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="by default a new one")
    parser.add_argument("--first", type=int, default=0, help="the number of the first round")
    parser.add_argument("--transport", action="append", help="over this one; may be repeated (default: all there are)")
    parser.add_argument(
        "--commit", choices=("in_place", "staged"), default="in_place", help="how versions are committed"
    )
    parser.add_argument("--delta", action="store_true", help="send what has changed; versions are staged")
    parser.add_argument("--shares", action="store_true", help="the same, and two of three engines serve a half each")
    options = parser.parse_args()
    commit, delta = ("staged", "on") if options.delta or options.shares else (options.commit, "off")
    halves = HALVES if options.shares else ()
    transports = options.transport or available()
    print(f"seed {options.seed}, {commit}, deltas {delta}, over {', '.join(transports)}", flush=True)
    outcomes: list[Outcome] = []
    end = time.monotonic() + options.minutes * 60
    number = options.first
    while len(outcomes) < options.updates and time.monotonic() < end:
        with Campaign(options.seed, transports, commit, delta, halves) as campaign:
            while len(outcomes) < options.updates and time.monotonic() < end:
                outcomes.append(campaign.round(number))
                print(outcomes[-1], flush=True)
                number += 1
                if outcomes[-1].violation:
                    break
    show(outcomes)
    return int(any(outcome.violation for outcome in outcomes))


ENDINGS = {
    "committed": "committed",
    "lost": "some lost",
    "UpdateAbortedError": "aborted",
    "TaintedError": "tainted",
    "KeyboardInterrupt": "interrupted",
    "died": "leader died",
}
"""How an update may end, and what the table calls that."""


def show(outcomes: Sequence[Outcome]) -> None:
    """Print how updates ended, by what was done to whom."""
    table = Table(title=f"{len(outcomes)} disturbed updates, each repaired by the next")
    for column in ("done", "to", "updates", *ENDINGS.values(), "engines that refuse", "violated"):
        table.add_column(column, justify="left" if column in ("done", "to") else "right", no_wrap=column == "done")
    grouped: dict[tuple[str, str], list[Outcome]] = collections.defaultdict(list)
    for outcome in outcomes:
        grouped[str(outcome.disturbance.act), outcome.disturbance.victim].append(outcome)
    for (act, victim), group in sorted(grouped.items()):
        table.add_row(act, victim, *_counts(group))
    table.add_section()
    table.add_row("all", "", *_counts(outcomes))
    console = Console(width=140)
    console.print(table)
    ended = sum(bool(outcome.tainted) for outcome in outcomes)
    console.print(f"{ended} of {len(outcomes)} ended with engines that lived and refuse to serve until the repair")


def _counts(group: Sequence[Outcome]) -> list[str]:
    counts = collections.Counter(_ending(outcome) for outcome in group)
    refuse = f"{sum(outcome.tainted for outcome in group)} of {sum(outcome.alive for outcome in group)}"
    violated = sum(bool(outcome.violation) for outcome in group)
    return [str(len(group)), *(str(counts[name]) for name in ENDINGS), refuse, str(violated)]


def _ending(outcome: Outcome) -> str:
    said = outcome.said
    return "lost" if said.kind == "committed" and said.lost else said.kind


if __name__ == "__main__":
    sys.exit(main())
