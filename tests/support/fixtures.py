"""Fixtures of tests that start processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leftovers import left_behind, swept
from tests.site import make_site, use


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    """After the test, shared memory holds nothing of this process and of those it has started."""
    yield
    assert not left_behind()


@pytest.fixture
def dead_are_swept(nothing_left_behind: None) -> Iterator[None]:
    """Before that is checked, what processes that were killed have left is removed, as the next process does."""
    yield
    swept()


@pytest.fixture
def nobody_is_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where settings say nothing else, however busy the machine is."""
    monkeypatch.setenv("CKPT_TRANSPORT_HEARTBEAT_TIMEOUT", "60")


@pytest.fixture
def rates_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test measures of this machine decides no other test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The transports of the tests, installed here; a folder for the path of other processes."""
    made = make_site(tmp_path / "site")
    monkeypatch.syspath_prepend(made)
    use(made)
    return made
