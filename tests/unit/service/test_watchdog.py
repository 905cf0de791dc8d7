"""A watchdog is needed for as long as its member lives, whatever happens when it acts."""

from __future__ import annotations

import threading

import pytest

from ckpt_transport.service.watchdog import Watchdog


def test_given_an_engine_and_a_message_that_fail_then_a_watchdog_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    answered, calls = threading.Event(), 0

    def give_up(reason: str) -> None:
        raise RuntimeError("this engine cannot be resumed")

    def stand_in() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("a message that nobody can read")
        answered.set()

    watchdog = Watchdog(0.1, lambda: "it is over", give_up, stand_in)
    with watchdog.watching():
        assert answered.wait(120)
    assert "this engine cannot be resumed" in caplog.text
    assert "a message that nobody can read" in caplog.text
    assert watchdog.came_back()
    watchdog.stop()
