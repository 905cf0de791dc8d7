"""Lines of the log say when, how bad, who and what."""

from __future__ import annotations

import json
import logging

import pytest

from ckpt_transport.events import ServingChanged, speaking_for, tell
from ckpt_transport.logs import JsonLines, TextLines

CHANGED = ServingChanged(at=1.5, update="5f0c", sink="sink 0", version="v2")
logger = logging.getLogger("ckpt_transport.tests")


def test_given_an_event_then_its_line_of_json_has_its_keys_and_who_speaks(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ckpt_transport.events"), speaking_for("sink 0", "5f0c"):
        tell(CHANGED)
        (line,) = [json.loads(JsonLines().format(record)) for record in caplog.records]
    expected = {"event": "serving_changed", "at": 1.5, "sink": "sink 0", "version": "v2", "update": "5f0c"}
    assert expected.items() <= line.items()
    assert (line["level"], line["member"], line["logger"]) == ("info", "sink 0", "ckpt_transport.events")
    assert "message" not in line


def test_given_a_warning_then_its_line_of_json_has_its_message_and_what_was_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with speaking_for("source 0", "77aa"):
        try:
            raise OSError("no disk\nat all")
        except OSError:
            logger.warning("it cannot be %s", "kept", exc_info=True)
        text = JsonLines().format(caplog.records[0])
    line = json.loads(text)
    assert "\n" not in text
    assert (line["message"], line["member"], line["update"]) == ("it cannot be kept", "source 0", "77aa")
    assert "no disk" in line["exception"]


def test_given_lines_for_people_then_they_say_it_in_words(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ckpt_transport.events"), speaking_for("sink 0"):
        tell(CHANGED)
        said = TextLines().format(caplog.records[0])
    assert said.endswith("INFO    sink 0: serving changed: update=5f0c sink=sink 0 version=v2")
    logger.warning("beware")
    assert TextLines().format(caplog.records[-1]).endswith("WARNING beware")
