"""The checks of engines find what they are for: each broken engine is caught by name."""

from __future__ import annotations

import pytest

from ckpt_transport.testing.engine import CHECKS, Patience, run
from tests.conformance.engines.broken import CASES, Case

PATIENCE = 60.0
"""Seconds in which what must not happen does here, on a busy machine too."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.engine.__name__)
def test_given_a_broken_engine_then_a_check_catches_it_by_name(case: Case) -> None:
    report = run(case.engine, only=case.found_by, patience=Patience(case.must, PATIENCE), transport="shm")
    assert set(report.failed) == set(case.found_by), str(report)
    for result in report.results:
        assert case.found_by[result.check.name] in result.explanation
        assert result.check.promise in result.explanation


def test_given_all_broken_engines_then_every_check_catches_one() -> None:
    assert {name for case in CASES for name in case.found_by} == {check.name for check in CHECKS}
