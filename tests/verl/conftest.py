"""Tests on a real verl: ``make e2e-verl``. Without verl in the environment they are skipped."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    missing = pytest.mark.skip(reason="verl is not installed here; 'make e2e-verl' installs it in .venv-verl")
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # verl's own, and Ray's
            item.add_marker(pytest.mark.timeout(300))
            if importlib.util.find_spec("verl") is None:
                item.add_marker(missing)
