"""What the demonstration found, and whether it is what was promised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from examples.llama.protocol import Compared, Inspected
from examples.shared.clients import Served, Summary

BEFORE, AFTER = "v1", "v2"


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Every parameter of every worker against a checkpoint's files.

    Attributes:
        workers: how many took part.
        parameters, elements: how many were compared, over all workers.
        mismatches: elements that differ, by worker and parameter.
    """

    workers: int
    parameters: int
    elements: int
    mismatches: dict[str, int]

    @classmethod
    def of(cls, compared: Sequence[Compared]) -> Comparison:
        """Add up what the workers found."""
        return cls(
            workers=len(compared),
            parameters=sum(worker.parameters for worker in compared),
            elements=sum(worker.elements for worker in compared),
            mismatches={
                f"worker {worker.rank}: {name}": elements
                for worker in compared
                for name, elements in worker.mismatches.items()
            },
        )


class Requests(msgspec.Struct, frozen=True, kw_only=True):
    """The clients' requests, by when they were under way.

    Attributes:
        total, failed: of all.
        before: ended before anything began.
        registering: under way while the new version was read.
        updating: under way during the update.
        after: began after it.
        versions: answers by the version of their last token.
    """

    total: int
    failed: int
    before: Summary
    registering: Summary
    updating: Summary
    after: Summary
    versions: dict[str, int]

    @classmethod
    def of(cls, served: Sequence[Served], register: float, update: float, end: float) -> Requests:
        """Sort the requests by the times at which registration and update began and the update ended."""
        answers = [request.answer for request in served if request.answer is not None]
        return cls(
            total=len(served),
            failed=len(served) - len(answers),
            before=Summary.of([request for request in served if request.end <= register]),
            registering=Summary.of([r for r in served if r.start < update and r.end > register]),
            updating=Summary.of([r for r in served if r.start < end and r.end > update]),
            after=Summary.of([request for request in served if request.start >= end]),
            versions={name: sum(answer.version == name for answer in answers) for name in (BEFORE, AFTER)},
        )


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the demonstration found.

    Attributes:
        ok: everything held.
        problems: what did not.
        transport: that carried the update.
        plan: its explanation, with why that transport was chosen.
        nbytes: of the new version.
        register_seconds, update_seconds: how long it took.
        paused: for each worker, the seconds for which its forward passes were held.
        prompt: of the tokens below.
        tokens_before, tokens_after: the answers of the old and the new version.
        tokens_confirmed: a model that was read from the files anew, and not split, gives the tokens after.
        requests: that the clients sent.
        comparison_before, comparison_after: of each version with its files.
        events: stages in the timeline.
        trace: the file with it.
    """

    ok: bool
    problems: tuple[str, ...]
    transport: str
    plan: str
    nbytes: int
    register_seconds: float
    update_seconds: float
    paused: dict[str, float]
    prompt: tuple[int, ...]
    tokens_before: tuple[int, ...]
    tokens_after: tuple[int, ...]
    tokens_confirmed: bool
    requests: Requests
    comparison_before: Comparison
    comparison_after: Comparison
    events: int
    trace: str


def problems_of_requests(requests: Requests, served: Sequence[Served], end: float) -> Iterator[str]:
    """What did not hold for the clients' requests."""
    if requests.failed:
        errors = sorted({request.error for request in served if request.error})
        yield f"{requests.failed} of {requests.total} requests failed: {'; '.join(errors)}"
    for name, summary in (("before", requests.before), ("during", requests.updating), ("after", requests.after)):
        if not summary.requests:
            yield f"no request was served {name} the update"
    stale = sum(
        1 for request in served if request.start >= end and request.answer and set(request.answer.versions) != {AFTER}
    )
    if stale:
        yield f"{stale} requests that began after the update were answered by the old version"
    back = sum(
        1 for request in served if request.answer and list(request.answer.versions) != sorted(request.answer.versions)
    )
    if back:
        yield f"{back} answers went back from {AFTER} to {BEFORE}"


def problems_of_comparison(comparison: Comparison, version: str) -> Iterator[str]:
    """What did not hold for a comparison with the files."""
    if not comparison.elements:
        yield f"nothing was compared with {version}"
    if comparison.mismatches:
        yield f"{len(comparison.mismatches)} parameters differ from {version}: {', '.join(comparison.mismatches)}"


def problems_of_workers(workers: Sequence[Inspected]) -> Iterator[str]:
    """What did not hold for the workers after the update."""
    for worker in workers:
        if worker.version != AFTER:
            yield f"worker {worker.rank} says that it serves {worker.version}"
