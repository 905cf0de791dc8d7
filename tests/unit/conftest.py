"""What holds for every unit test."""

import pytest
from hypothesis import HealthCheck, settings

from tests.support.fixtures import nobody_is_taken_for_dead

__all__ = ["nobody_is_taken_for_dead"]

# How long an example takes says what else the machine does.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _nobody_is_taken_for_dead(nobody_is_taken_for_dead: None) -> None:
    """However busy the machine is."""
