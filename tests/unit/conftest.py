"""What holds for every unit test."""

import pytest

from tests.support.fixtures import nobody_is_taken_for_dead
from tests.unhurried import hurry_no_example

__all__ = ["nobody_is_taken_for_dead"]

hurry_no_example()


@pytest.fixture(autouse=True)
def _nobody_is_taken_for_dead(nobody_is_taken_for_dead: None) -> None:
    """However busy the machine is."""
