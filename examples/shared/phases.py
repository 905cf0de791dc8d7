"""The clients' requests, by when they were under way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from examples.shared.clients import Served
from examples.shared.display import Display, milliseconds

BEFORE, AFTER = "before", "after"
Phases = Mapping[str, list[Served]]


def by_phase(served: Sequence[Served], spans: Mapping[str, tuple[float, float]]) -> Phases:
    """Sort requests: ended before all the spans, under way during each of them, begun after all.

    Args:
        served: the requests.
        spans: begin and end of what happened meanwhile, on the monotonic clock, in order.
    """
    began, ended = min(begin for begin, _ in spans.values()), max(end for _, end in spans.values())
    during = {
        name: [each for each in served if each.start < end and each.end > begin] for name, (begin, end) in spans.items()
    }
    return {
        BEFORE: [each for each in served if each.end <= began],
        **during,
        AFTER: [each for each in served if each.start >= ended],
    }


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Says how some requests went.

    Attributes:
        requests, failed: how many.
        longest: seconds the longest took.
        longest_wait: seconds that a client waited for its next token, at most.
    """

    requests: int
    failed: int
    longest: float
    longest_wait: float

    @classmethod
    def of(cls, served: Sequence[Served]) -> Summary:
        """Sum them up."""
        return cls(
            requests=len(served),
            failed=sum(bool(each.error) for each in served),
            longest=max((each.seconds for each in served), default=0.0),
            longest_wait=max((each.longest_wait() for each in served), default=0.0),
        )


def show(display: Display, phases: Phases) -> dict[str, Summary]:
    """Print a line for each phase; the summaries in it."""
    summaries = {name: Summary.of(served) for name, served in phases.items()}
    display.table(
        ["", "requests", "failed", "longest", "longest for a token"],
        [
            [name, str(s.requests), str(s.failed), milliseconds(s.longest), milliseconds(s.longest_wait)]
            for name, s in summaries.items()
        ],
    )
    return summaries


def problems(served: Sequence[Served], phases: Phases) -> Iterator[str]:
    """What did not hold: no request may fail, and some must have been served in every phase."""
    errors = [each.error for each in served if each.error]
    if errors:
        yield f"{len(errors)} of {len(served)} requests failed: {'; '.join(sorted(set(errors)))}"
    for name, some in phases.items():
        if not some:
            yield f"no request was served {name}"
