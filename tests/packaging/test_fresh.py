"""A release is tried with the Pythons that a machine has, and those that it lacks are named."""

from __future__ import annotations

import sys

import pytest

from tests.packaging.fresh import find, main


def test_given_the_python_that_runs_then_it_is_found() -> None:
    python, reasons = find(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert python, reasons


def test_given_a_python_that_nobody_has_then_it_is_skipped_by_name_and_no_release_is_called_good(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main("no.whl", ["3.99"]) == 1
    assert "Python 3.99: skipped: python3.99: No such file or directory" in capsys.readouterr().out
