"""What holds for every test here."""

import pytest

from tests.support.fixtures import dead_are_swept, nobody_is_taken_for_dead, nothing_left_behind, site

__all__ = ["dead_are_swept", "nobody_is_taken_for_dead", "nothing_left_behind", "site"]


@pytest.fixture(autouse=True)
def _leaves_nothing(nothing_left_behind: None) -> None:
    """Every test is checked."""


@pytest.fixture(autouse=True)
def _nobody_is_taken_for_dead(nobody_is_taken_for_dead: None) -> None:
    """However busy the machine is."""
