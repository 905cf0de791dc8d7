"""Engines that join a fleet, as a user sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from ckpt_transport.transports import registry
from examples.joining import latency
from examples.joining.result import VERSION, Result
from examples.shared.clients import Served

LIBRARIES = ("mooncake", "ucx", "nixl")
FOUND = [name for name in LIBRARIES if registry.available(name).ok]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "transports",
    [
        pytest.param(["gloo", "shm"], id="gloo and shm"),
        pytest.param(
            FOUND,
            id="transfer libraries",
            marks=pytest.mark.skipif(len(FOUND) < 2, reason="fewer than two of mooncake, ucx and nixl are here"),
        ),
    ],
)
def test_given_a_fleet_when_engines_join_over_named_transports_then_it_serves_on(
    tmp_path: Path, transports: list[str]
) -> None:
    """Given a fleet of two, when engines join over some transports, then they give its tokens, and nothing failed."""
    found = tmp_path / "result.json"
    command = [sys.executable, "-m", "examples.joining", *(f"--transport={name}" for name in transports)]
    ran = subprocess.run([*command, "--json", found], capture_output=True, text=True, timeout=550)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    result = msgspec.json.decode(found.read_bytes(), type=Result)
    assert result.problems == ()
    assert result.versions == (VERSION, VERSION)
    assert [joined.transports for joined in result.joined] == [(name,) for name in transports]
    for joined in result.joined:
        assert joined.identical
        assert joined.comparison.elements
        assert not joined.comparison.mismatches
        assert len(joined.sent) == 2
        assert max(joined.sent) <= 1.1 * min(joined.sent)
    assert list(result.requests) == ["before", "while engines joined", "after"]
    for summary in result.requests.values():
        assert summary.requests
        assert summary.failed == 0


def test_given_a_transport_that_is_not_there_then_it_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.joining", "--transport", "pigeon"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert ran.returncode == 1
    assert "pigeon" in ran.stdout


def test_given_requests_when_they_are_drawn_then_the_picture_is_as_wide_as_asked_and_marks_spans() -> None:
    served = [Served(number / 10, number / 10 + 0.05 * (1 + number % 3), None) for number in range(100)]
    lines = latency.picture(served, [(2.0, 3.0), (5.0, 5.01)], 60).splitlines()
    assert {len(line) for line in lines} == {len(lines[0])}
    assert lines[-1].count("1") == lines[-1].count("2") == 1
    assert "█" in lines[-2]
    assert latency.picture([], [], 60) == "(no requests)"
