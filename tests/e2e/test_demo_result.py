"""The demonstration's verdict: whatever is not as promised is a problem, and makes it fail."""

from __future__ import annotations

from examples.live_update.result import (
    Comparison,
    Requests,
    problems_of_comparison,
    problems_of_requests,
    problems_of_workers,
)
from examples.llama.protocol import Compared, Generated, Inspected
from examples.shared.clients import Served

REGISTER, UPDATE, UPDATED = 10.0, 11.0, 12.0


def answered(start: float, end: float, *versions: str) -> Served:
    return Served(start, end, Generated((1,) * len(versions), versions[-1], versions, 0.1))


GOOD = [answered(1, 2, "v1"), answered(9, 11.5, "v1", "v2"), answered(13, 14, "v2")]


def problems(served: list[Served]) -> list[str]:
    return list(problems_of_requests(Requests.of(served, REGISTER, UPDATE, UPDATED), served, UPDATED))


def test_given_requests_then_they_are_sorted_by_when_they_were_under_way() -> None:
    requests = Requests.of(GOOD, REGISTER, UPDATE, UPDATED)
    assert [requests.before.requests, requests.registering.requests, requests.updating.requests] == [1, 1, 1]
    assert requests.updating.spanning == 1
    assert requests.updating.longest == 2.5
    assert requests.versions == {"v1": 1, "v2": 2}
    assert problems(GOOD) == []


def test_given_a_request_that_failed_then_it_is_a_problem() -> None:
    (problem,) = problems([*GOOD, Served(11.2, 11.3, None, "ReadTimeout")])
    assert "1 of 4 requests failed: ReadTimeout" in problem


def test_given_an_update_that_nobody_was_served_in_then_it_is_a_problem() -> None:
    assert problems([GOOD[0], GOOD[2]]) == ["no request was served during the update"]


def test_given_a_new_request_with_an_old_answer_then_it_is_a_problem() -> None:
    (problem,) = problems([*GOOD, answered(12.5, 13, "v1", "v2")])
    assert "answered by the old version" in problem


def test_given_an_answer_that_goes_back_to_the_old_version_then_it_is_a_problem() -> None:
    assert problems([*GOOD, answered(9, 11.5, "v1", "v2", "v1")]) == ["1 answers went back from v2 to v1"]


def test_given_a_comparison_that_differs_or_compares_nothing_then_it_is_a_problem() -> None:
    same = Compared(0, 2, 100, {})
    assert list(problems_of_comparison(Comparison.of([same, same]), "v2")) == []
    (problem,) = problems_of_comparison(Comparison.of([same, Compared(1, 2, 100, {"weight": 3})]), "v2")
    assert "worker 1: weight" in problem
    (problem,) = problems_of_comparison(Comparison.of([]), "v2")
    assert "nothing was compared" in problem


def test_given_a_worker_with_another_version_then_it_is_a_problem() -> None:
    (problem,) = problems_of_workers([Inspected(0, "v2", 1, 1, 4), Inspected(1, "v1", 1, 1, 4)])
    assert problem == "worker 1 says that it serves v1"
