"""What holds for every test here."""

import pytest

from tests.unit.execution import fleets


@pytest.fixture(autouse=True)
def _only_own_pumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sink of an earlier test in this process may have left one that ends later."""
    monkeypatch.setattr(fleets, "others", frozenset(fleets.pumps()))
