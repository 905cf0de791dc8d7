"""What holds for every test here."""

import pytest

from tests.support.fixtures import dead_are_swept, nothing_left_behind, site

__all__ = ["dead_are_swept", "nothing_left_behind", "site"]


@pytest.fixture(autouse=True)
def _leaves_nothing(nothing_left_behind: None) -> None:
    """Every test is checked."""
