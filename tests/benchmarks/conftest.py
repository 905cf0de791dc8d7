"""What holds for every benchmark that is tried."""

import pytest

from tests.support.fixtures import nobody_is_taken_for_dead, rates_of_its_own

__all__ = ["nobody_is_taken_for_dead", "rates_of_its_own"]


@pytest.fixture(autouse=True)
def _nobody_is_taken_for_dead(nobody_is_taken_for_dead: None) -> None:
    """However busy the machine is."""


@pytest.fixture(autouse=True)
def _rates_of_its_own(rates_of_its_own: None) -> None:
    """Some begin with measuring the machine."""
