"""The checks find what they are for: each broken transport is caught by name, and its working twin is not."""

from __future__ import annotations

import pytest

from ckpt_transport.testing import CHECKS, run
from tests.conformance.broken import CASES, Case

SHORT = 8.0
"""Seconds for checks that are to fail; some do so by waiting until the end."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_broken_transport_is_caught_by_name(case: Case) -> None:
    report = run(case.transport, only=case.found_by, deadline=SHORT)
    assert set(report.failed) == set(case.found_by), str(report)
    for result in report.results:
        assert case.found_by[result.check.name] in result.explanation
        assert result.check.promise in result.explanation


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_its_twin_passes(case: Case) -> None:
    report = run(case.twin, only=case.found_by)
    assert report.ok, str(report)


def test_every_check_catches_something() -> None:
    assert {name for case in CASES for name in case.found_by} == {check.name for check in CHECKS}
