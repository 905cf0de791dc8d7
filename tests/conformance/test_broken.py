"""The checks find what they are for: each broken transport is caught by name, and its working twin is not."""

from __future__ import annotations

import pytest

from ckpt_transport.testing import CHECKS, run
from tests.conformance.broken import CASES, Case
from tests.conformance.test_conformance import BETWEEN_PROCESSES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_given_a_broken_transport_then_a_check_catches_it_by_name(case: Case) -> None:
    report = run(case.transport, only=case.found_by, deadline=case.deadline)
    assert set(report.failed) == set(case.found_by), str(report)
    for result in report.results:
        assert case.found_by[result.check.name] in result.explanation
        assert result.check.promise in result.explanation


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_given_a_broken_transport_then_its_twin_is_one_that_passes_every_check(case: Case) -> None:
    assert case.twin in BETWEEN_PROCESSES
    assert issubclass(case.transport, case.twin)


def test_given_all_broken_transports_then_every_check_catches_one() -> None:
    assert {name for case in CASES for name in case.found_by} == {check.name for check in CHECKS}
