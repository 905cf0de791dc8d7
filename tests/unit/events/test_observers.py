"""Whoever observes is told what happens in its process, and can disturb nobody."""

from __future__ import annotations

import json
import logging

import pytest

from ckpt_transport.events import Event, ServingChanged, observe, tell

CHANGED = ServingChanged(at=1.5, update="5f0c", sink="sink 0", version="v2")


def test_given_an_observer_then_it_is_told_until_it_stops() -> None:
    told: list[Event] = []
    stop = observe(told.append)
    tell(CHANGED)
    stop()
    stop()
    tell(CHANGED)
    assert told == [CHANGED]


def test_given_an_observer_that_fails_then_that_is_logged_and_the_others_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Event] = []

    def fail(event: Event) -> None:
        raise OSError("no disk")

    stops = [observe(fail), observe(told.append)]
    tell(CHANGED)
    for stop in stops:
        stop()
    assert told == [CHANGED]
    assert "an observer of events failed" in caplog.text
    assert "no disk" in caplog.text


def test_given_the_log_then_an_event_is_a_line_of_json(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ckpt_transport.events"):
        tell(CHANGED)
    (record,) = caplog.records
    assert json.loads(record.getMessage()) == {
        "event": "serving_changed",
        "at": 1.5,
        "update": "5f0c",
        "sink": "sink 0",
        "version": "v2",
    }
