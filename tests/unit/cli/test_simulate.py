"""``ckpt-transport simulate``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ckpt_transport.cli.app import app
from ckpt_transport.errors import ConfigError

CLUSTER = """
hosts = 3
sinks = 1
transports = ["gloo", "shm"]
links = {nic = 12.5e6}
"""
MODEL = """
[model]
layers = 2
hidden = 512
expert_hidden = 512
vocabulary = 1024
"""


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    (tmp_path / "model.toml").write_text(MODEL)
    given = ["--cluster", str(tmp_path / "cluster.toml"), "--model", str(tmp_path / "model.toml")]
    return ["simulate", *given, "--transport", "gloo+shm"]


def test_given_a_cluster_then_people_are_told_how_long_it_takes_and_what_is_slowest(arguments: list[str]) -> None:
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0, said.output
    assert "takes " in said.output
    assert "slowest" in said.output
    assert "out of host0" in said.output
    assert "sink 0 of host2 apply" in said.output


def test_given_json_then_programs_get_one_document_and_a_trace(arguments: list[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    said = CliRunner().invoke(app, [*arguments, "--json", "--trace", str(trace)])
    found = json.loads(said.output)
    assert found["complete"]
    assert found["applied"] == found["applies"]
    moved = 2 * (4 + 3) * 512 * 512 * 2 + 2 * 1024 * 512 * 2
    # Two copies leave host 0, at 12.5 MB/s.
    assert found["seconds"] == pytest.approx(2 * moved / 12.5e6, rel=0.05)
    assert json.loads(trace.read_text())["traceEvents"]


def test_given_a_file_for_goal_then_the_plan_is_written_there_and_what_it_takes_is_told(
    arguments: list[str], tmp_path: Path
) -> None:
    said = CliRunner().invoke(app, [*arguments, "--goal", str(tmp_path / "plan.goal")])
    assert said.exit_code == 0, said.output
    assert "takes " in said.output
    schedule = (tmp_path / "plan.goal").read_text()
    assert schedule.startswith("num_ranks 4\n")
    assert schedule.count(": send ") == schedule.count(": recv ") > 0


def test_given_a_trace_that_cannot_be_written_then_it_is_refused_before_anything_is_simulated(
    arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    refused = CliRunner().invoke(app, [*arguments, "--trace", str(tmp_path / "file" / "trace.json")])
    assert isinstance(refused.exception, ConfigError)
    assert "choose another place for the trace" in str(refused.exception)
    assert "takes " not in refused.output


def test_given_a_member_that_dies_then_the_update_is_said_to_fail(arguments: list[str]) -> None:
    said = CliRunner().invoke(app, [*arguments, "--dies", "2@0.5"])
    assert "fails" in said.output
    assert "sink 0 of host1 dies at 0.5 s" in said.output


@pytest.mark.parametrize(("option", "words"), [(["--dies", "9@1"], "RANK@SECONDS"), (["--checkpoint", "."], "one of")])
def test_given_options_that_mean_nothing_then_they_are_refused(
    arguments: list[str], option: list[str], words: str
) -> None:
    refused = CliRunner().invoke(app, [*arguments, *option])
    assert isinstance(refused.exception, ConfigError)
    assert words in str(refused.exception)
