"""What holds for every benchmark that is tried."""

import pytest

from tests.support.fixtures import nobody_is_taken_for_dead

__all__ = ["nobody_is_taken_for_dead"]


@pytest.fixture(autouse=True)
def _nobody_is_taken_for_dead(nobody_is_taken_for_dead: None) -> None:
    """However busy the machine is."""
