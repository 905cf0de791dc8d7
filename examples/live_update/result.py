"""What the demonstration found, and whether it is what was promised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from examples.llama.checks import Comparison
from examples.llama.messages import Inspected
from examples.shared.clients import Served
from examples.shared.phases import AFTER, Phases, Summary

OLD, NEW = "v1", "v2"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the demonstration found.

    Attributes:
        problems: what was not as promised.
        verdict: what is to be said when everything was.
        transport: that carried the update.
        plan: its explanation, with why that transport was chosen.
        nbytes: of the new version.
        register_seconds, update_seconds: how long it took.
        paused: for each worker, the seconds for which its forward passes were held.
        tokens_before, tokens_after: the answers of the old and the new version to the same prompt.
        requests: that the clients sent, by when they were under way.
        comparisons: of each version with its files.
        events: stages in the timeline.
        trace: the file with it.
    """

    problems: tuple[str, ...]
    verdict: str = f"{NEW} is served by every worker, no request failed, and every bit is right."
    transport: str
    plan: str
    nbytes: int
    register_seconds: float
    update_seconds: float
    paused: dict[str, float]
    tokens_before: tuple[int, ...]
    tokens_after: tuple[int, ...]
    requests: dict[str, Summary]
    comparisons: tuple[Comparison, ...]
    events: int
    trace: str


def spanning(served: Sequence[Served]) -> int:
    """How many answers one version has begun and the next one ended."""
    return sum(len(set(each.versions)) > 1 for each in served)


def problems_of_versions(served: Sequence[Served], phases: Phases, workers: Sequence[Inspected]) -> Iterator[str]:
    """What did not hold of the versions that answered requests and that the workers name."""
    stale = sum(bool(set(each.versions) - {NEW}) for each in phases[AFTER])
    if stale:
        yield f"{stale} requests that began after the update were answered by the old version"
    back = sum(list(each.versions) != sorted(each.versions) for each in served)
    if back:
        yield f"{back} answers went back from {NEW} to {OLD}"
    for worker in workers:
        if worker.version != NEW:
            yield f"worker {worker.rank} says that it serves {worker.version}"
