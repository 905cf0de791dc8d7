"""The timeline as a picture and as a trace."""

from __future__ import annotations

import json
import time
from pathlib import Path

from ckpt_transport.execution import StageEvent, draw, now, write_trace
from ckpt_transport.planning import StageKind

FILL, TRANSFER, APPLY = StageKind.FILL, StageKind.TRANSFER, StageKind.APPLY
EVENTS = [
    StageEvent(0, FILL, 0, 100.0, 100.25),
    StageEvent(0, TRANSFER, 0, 100.25, 100.5),
    StageEvent(1, TRANSFER, 0, 100.25, 100.5),
    StageEvent(1, APPLY, 0, 100.5, 101.0),
]


def test_given_a_timeline_then_its_picture_has_a_line_for_every_rank_and_kind_and_a_scale() -> None:
    lines = draw(EVENTS, {0: "source", 1: "sink"}, width=40).splitlines()
    assert [line[:16].strip() for line in lines[:-1]] == [
        "source fill",
        "source transfer",
        "sink transfer",
        "sink apply",
    ]
    assert lines[0][16:] == "▒" * 11 + " " * 29
    assert lines[1][16:] == " " * 10 + "░" * 11 + " " * 19
    assert lines[3][16:] == " " * 20 + "█" * 20
    assert lines[-1].split() == ["0", "1000.0", "ms"]


def test_given_no_label_then_the_rank_is_named() -> None:
    assert draw(EVENTS, {}).startswith("rank 0 fill")


def test_given_nothing_happened_then_the_picture_says_so() -> None:
    assert draw([], {}) == "(nothing happened)"


def test_given_an_instant_then_it_can_be_seen() -> None:
    picture = draw([StageEvent(0, APPLY, 0, 5.0, 5.0)], {0: "x"}, width=20)
    assert picture.count("█") == 1
    assert "0.0 ms" in picture


def test_given_a_timeline_then_its_trace_has_what_viewers_ask_for(tmp_path: Path) -> None:
    """As the Trace Event Format says: complete events in microseconds, and names for processes and threads."""
    path = tmp_path / "trace.json"
    write_trace(path, reversed(EVENTS), {0: "source", 1: "sink"})
    trace = json.loads(path.read_text())
    named = {event["pid"]: event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"}
    threads = [event for event in trace["traceEvents"] if event["name"] == "thread_name"]
    complete = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert trace["displayTimeUnit"] == "ms"
    assert named == {0: "source", 1: "sink"}
    assert {(event["tid"], event["args"]["name"]) for event in threads} == {(0, "fill"), (1, "transfer"), (2, "apply")}
    assert [(event["name"], event["pid"], event["tid"], event["ts"], event["dur"]) for event in complete] == [
        ("fill 0", 0, 0, 0.0, 250_000.0),
        ("transfer 0", 1, 1, 250_000.0, 250_000.0),
        ("transfer 0", 0, 1, 250_000.0, 250_000.0),
        ("apply 0", 1, 2, 500_000.0, 500_000.0),
    ]
    assert all(event["ph"] in "XM" for event in trace["traceEvents"])


def test_given_no_events_then_the_trace_is_empty_and_valid(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.json", [], {})
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []


def test_given_the_clock_then_it_never_steps_back_and_is_about_the_time_of_day() -> None:
    times = [now() for _ in range(1000)]
    assert times == sorted(times)
    assert abs(times[0] - time.time()) < 3600
