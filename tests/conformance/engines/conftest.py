"""What broken engines leave behind on purpose is given back, so that tests after them find nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.conformance.engines.broken import LeavesMemory, LeavesSockets
from tests.support.fixtures import nothing_left_behind

__all__ = ["nothing_left_behind"]


@pytest.fixture(autouse=True)
def _given_back(nothing_left_behind: None) -> Iterator[None]:
    """Every test is checked, after this."""
    yield
    while LeavesMemory.left:
        LeavesMemory.left.pop().close()
    while LeavesSockets.left:
        for end in LeavesSockets.left.pop():
            os.close(end)
