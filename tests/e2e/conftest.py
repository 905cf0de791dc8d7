"""What holds for every demonstration."""

import pytest


@pytest.fixture(autouse=True)
def _nobody_is_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is."""
    monkeypatch.setenv("CKPT_TRANSPORT_HEARTBEAT_TIMEOUT", "60")
