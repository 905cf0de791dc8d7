"""The demonstration's verdict: whatever is not as promised is a problem, and makes it fail."""

from __future__ import annotations

import pytest

from examples.live_update.result import problems_of_versions, spanning
from examples.llama.checks import Comparison
from examples.llama.messages import Compared, Inspected
from examples.shared import phases
from examples.shared.clients import Answer, Served

SPANS = {"registering": (10.0, 11.0), "updating": (11.0, 12.0)}
WORKERS = [Inspected(0, "v2", 1, 4), Inspected(1, "v2", 1, 4)]


def answered(start: float, end: float, *versions: str) -> Served:
    return Served(start, end, Answer((end - 0.1,) * len(versions), versions))


GOOD = [answered(1, 2, "v1"), answered(9, 11.5, "v1", "v2"), answered(13, 14, "v2")]


def problems(served: list[Served], workers: list[Inspected] = WORKERS) -> list[str]:
    sorted_ = phases.by_phase(served, SPANS)
    return [*phases.problems(served, sorted_), *problems_of_versions(served, sorted_, workers)]


def test_given_requests_then_they_are_sorted_by_when_they_were_under_way() -> None:
    summaries = {name: phases.Summary.of(served) for name, served in phases.by_phase(GOOD, SPANS).items()}
    assert {name: summary.requests for name, summary in summaries.items()} == {
        "before": 1,
        "registering": 1,
        "updating": 1,
        "after": 1,
    }
    assert summaries["updating"].longest == 2.5
    assert summaries["updating"].longest_wait == pytest.approx(2.4)
    assert spanning(GOOD) == 1
    assert problems(GOOD) == []


def test_given_a_moment_then_the_wait_around_it_is_found() -> None:
    served = Served(0.0, 10.0, Answer((1.0, 4.0, 9.0)))
    assert served.longest_wait() == 5.0
    assert served.longest_wait(around=2.0) == 3.0


def test_given_a_failed_request_then_it_is_a_problem() -> None:
    (problem,) = problems([*GOOD, Served(11.2, 11.3, None, "ReadTimeout")])
    assert "1 of 4 requests failed: ReadTimeout" in problem


def test_given_an_update_that_nobody_was_served_in_then_it_is_a_problem() -> None:
    assert problems([GOOD[0], answered(9, 10.5, "v1"), GOOD[2]]) == ["no request was served updating"]


def test_given_an_old_answer_to_a_new_request_then_it_is_a_problem() -> None:
    (problem,) = problems([*GOOD, answered(12.5, 13, "v1", "v2")])
    assert "answered by the old version" in problem


def test_given_an_answer_that_goes_back_to_the_old_version_then_it_is_a_problem() -> None:
    assert problems([*GOOD, answered(9, 11.5, "v1", "v2", "v1")]) == ["1 answers went back from v2 to v1"]


def test_given_a_comparison_that_differs_or_compares_nothing_then_it_is_a_problem() -> None:
    same = Compared(0, 2, 100, {})
    assert list(Comparison.of("v2", [same, same]).problems()) == []
    (problem,) = Comparison.of("v2", [same, Compared(1, 2, 100, {"weight": 3})]).problems()
    assert problem == "3 elements differ from v2: worker 1: weight"
    (problem,) = Comparison.of("v2", []).problems()
    assert "nothing was compared" in problem


def test_given_a_worker_with_another_version_then_it_is_a_problem() -> None:
    assert problems(GOOD, [WORKERS[0], Inspected(1, "v1", 1, 4)]) == ["worker 1 says that it serves v1"]
