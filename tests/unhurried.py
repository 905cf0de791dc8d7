"""Examples of hypothesis may take as long as they do: how long says what else the machine does."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

PROFILE = "unhurried"
settings.register_profile(PROFILE, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def hurry_no_example() -> None:
    """From now on, in this process."""
    settings.load_profile(PROFILE)
