"""The doctor asks a fleet's members, compares them, and says what is wrong with which."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest

from ckpt_transport import Config
from ckpt_transport.service import sink as sink_module
from tests.fleet import SinkSpec, SourceProcess, fleet
from tests.injection import Fault
from tests.patience import DEADLINE, PATIENT, SWIFT, with_enough_seconds
from tests.support.commands import run
from tests.vllm_stub import StubServer


def of_another_release() -> None:
    """What a sink says of itself that was installed earlier."""
    vars(sink_module)["RELEASE"] = "0.0.9"


def an_hour_ahead() -> None:
    """What a sink whose host's clock is wrong answers."""
    vars(sink_module)["time"] = SimpleNamespace(time=lambda: time.time() + 3600)


def looked_at(*arguments: object) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and what was found by topic."""
    done = run("doctor", "--json", "--timeout", DEADLINE, *arguments)
    return done.returncode, {finding["topic"]: finding for finding in json.loads(done.stdout)}


def test_given_sinks_that_are_well_then_the_doctor_finds_no_problem_and_names_what_differs() -> None:
    with fleet(SinkSpec(), SinkSpec(prepare=of_another_release)) as (sink, older):
        code, found = looked_at(sink.address, older.address)
        assert code == 0
        assert found[sink.address]["said"] == "sink 0 serves v1"
        assert found["versions"]["severity"] == "ok"
        assert found["releases"]["severity"] == "warning"
        assert f"0.0.9: {older.address}" in found["releases"]["said"]
        assert found["releases"]["cure"]


def test_given_a_sink_whose_clock_is_wrong_then_the_doctor_says_by_how_much() -> None:
    with fleet(SinkSpec(), SinkSpec(prepare=an_hour_ahead)) as (sink, ahead):
        _, found = looked_at(sink.address)
        assert found["clocks"]["severity"] == "ok"
        _, found = looked_at(sink.address, ahead.address)
        assert found["clocks"]["severity"] == "warning"
        assert f"{ahead.address} is 3600.0 s ahead of this host" in found["clocks"]["said"]
        assert found["clocks"]["cure"]


def test_given_a_sink_that_must_not_serve_and_one_that_is_gone_then_each_is_a_problem_with_a_cure() -> None:
    gone = "ipc:///tmp/nobody"
    with fleet(SinkSpec(settings=SWIFT, fault=Fault("load", act="raise"))) as (sink,):
        assert SourceProcess([sink.address], settings={**SWIFT, "transport": "shm"}).outcome().startswith("Tainted")

        def is_told(seconds: float) -> bool:
            done = run("doctor", "--timeout", seconds, sink.address, gone)
            assert done.returncode == 1
            assert f"no answer from {gone} within {seconds:g} s; is a sink running there?" in done.stdout
            if "must not serve" not in done.stdout:
                return False
            assert "bring a version to it" in done.stdout
            assert done.stdout.count("running") == 1, "a cure is said once"
            return True

        with_enough_seconds(is_told)


def test_given_an_engine_at_an_endpoint_then_the_doctor_says_what_it_serves() -> None:
    with StubServer(Config.load(**PATIENT)) as engine:
        code, found = looked_at("--engine", "vllm", "--endpoint", engine.url)
        assert code == 0
        assert found[engine.url]["said"] == "serves v1"


@pytest.mark.parametrize("options", [("--engine", "vllm"), ("--endpoint", "http://127.0.0.1:1")])
def test_given_half_of_what_names_an_engine_then_the_doctor_says_what_is_missing(options: tuple[str, ...]) -> None:
    done = run("doctor", *options)
    assert done.returncode == 2
    assert "--engine and --endpoint belong together" in done.stderr
