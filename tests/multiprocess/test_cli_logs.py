"""Commands log what has happened, in the format that was asked for, and nothing of other packages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.fleet import SinkSpec, fleet, weights
from tests.support.commands import ENVIRONMENT, run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_file(weights(2), path := tmp_path / "v2.safetensors")
    return path


def test_given_log_lines_of_json_when_an_update_succeeds_then_each_line_is_json_and_one_says_so(
    checkpoint: Path,
) -> None:
    with fleet(SinkSpec()) as (sink,):
        update = ("update", "--checkpoint", checkpoint, "--version", "v2", "--sink", sink.address)
        done = run("--log-format", "json", *update)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        (ended,) = [line for line in lines if line.get("event") == "update_ended"]
        assert (ended["outcome"], ended["version"], ended["member"]) == ("committed", "v2", "source 0")
        assert ended["update"]
        assert all(line["logger"].startswith("ckpt_transport") for line in lines)
        assert "v2 is served by 1 sink" in done.stdout


def test_given_log_lines_for_people_then_a_setting_asks_for_them_and_an_option_overrules_it(checkpoint: Path) -> None:
    environ = {**ENVIRONMENT, "CKPT_TRANSPORT_LOG_FORMAT": "text"}
    with fleet(SinkSpec()) as (sink,):
        update = ("update", "--checkpoint", checkpoint, "--version", "v2", "--sink", sink.address)
        said = run(*update, environ=environ).stderr
        assert "INFO    source 0: update ended: " in said
        assert "outcome=committed" in said
        assert json.loads(run("--log-format", "json", *update, environ=environ).stderr.splitlines()[-1])["event"]
        assert run(*update).stderr == ""


def test_given_a_format_that_there_is_not_then_it_is_refused(checkpoint: Path) -> None:
    done = run("--log-format", "xml", "update", "--checkpoint", checkpoint, "--version", "v2")
    assert done.returncode == 2
    done = run("version", "ipc:///a", environ={**ENVIRONMENT, "CKPT_TRANSPORT_LOG_FORMAT": "xml"})
    assert done.returncode == 1
    assert "bad value for 'log_format' in the environment" in done.stderr
