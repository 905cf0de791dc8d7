"""Commands refuse what cannot be before they read a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from ckpt_transport.cli.app import app
from ckpt_transport.errors import CkptTransportError, ConfigError
from tests.fleet import SinkSpec, fleet, weights
from tests.support.commands import ENVIRONMENT, run

DEAD = "http://127.0.0.1:1"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_file(weights(2), tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ("", "an update needs sinks"),
        ("nowhere", "bad value for 'sinks'"),
        ("ipc:///tmp/a --sink ipc:///tmp/a", "the same sink is named twice"),
        (f"ipc:///tmp/a --engine vllm --endpoint {DEAD}", "give addresses of sinks, or --engine and --endpoint"),
        ("--sink ipc:///tmp/a --sink ipc:///tmp/a", "the same sink is named twice"),
        ("--sink nowhere", "bad value for 'sinks'"),
        (f"--sink {DEAD}", "the URL of an engine goes to --endpoint"),
        ("--engine vllm --endpoint 127.0.0.1:8000", "127.0.0.1:8000 cannot be asked (it begins with neither"),
        ("--sink ipc:///tmp/a --update-method p2p --ranks 1", "ranks 1 were asked for, and there are 1 sinks"),
        ("--sink tcp://127.0.0.1:1", "give all participants the same secret_file"),
        ("--sink ipc:///tmp/a --config {folder}/no-secret.toml", "secret_file /none: No such file"),
        (f"--engine vllm --endpoint {DEAD} --config {{folder}}/no-secret.toml", "secret_file /none: No such file"),
        ("--sink ipc:///tmp/a --mapping {folder}/no-secret.toml", "is no mapping: Object contains unknown field"),
        ("--sink ipc:///tmp/a --transport carrier-pigeon", "carrier-pigeon"),
        ("--sink ipc:///tmp/a --trace /proc/none/trace", "choose another place for the trace"),
        ("--sink ipc:///tmp/a --trace {folder}/pipe", "pipe cannot be a file that is written"),
        (f"--engine abacus --endpoint {DEAD}", "no adapter drives engines called 'abacus'"),
        (f"--engine vllm --endpoint {DEAD} --endpoint {DEAD}", "an endpoint is named twice"),
        (f"--engine vllm --endpoint {DEAD} --pause maybe", "pause is 'maybe'"),
    ],
)
def test_given_an_update_that_cannot_be_then_nothing_is_read(checkpoint: Path, options: str, refusal: str) -> None:
    (checkpoint / "no-secret.toml").write_text('secret_file = "/none"')
    os.mkfifo(checkpoint / "pipe")
    given = options.format(folder=checkpoint).split()
    done = CliRunner().invoke(app, ["update", "--checkpoint", str(checkpoint), "--version", "v2", *given])
    assert isinstance(done.exception, CkptTransportError)
    assert refusal in str(done.exception)
    assert "reading" not in done.output


@pytest.mark.parametrize("folder", ["missing", "model.safetensors"])
def test_given_a_holder_whose_file_cannot_be_written_then_nothing_is_read(checkpoint: Path, folder: str) -> None:
    metas = checkpoint / folder / "metas.json"
    options = ["serve", "--checkpoint", str(checkpoint), "--version", "v2", "--save-metas", str(metas)]
    done = CliRunner().invoke(app, options)
    assert isinstance(done.exception, ConfigError)
    assert f"{metas} cannot be written" in str(done.exception)
    assert "reading" not in done.output


def test_given_an_engine_that_is_not_there_then_it_is_waited_for_and_nothing_is_read(checkpoint: Path) -> None:
    update = ("update", "--checkpoint", checkpoint, "--version", "v2", "--engine", "vllm", "--endpoint", DEAD)
    done = run(*update, "--endpoint-timeout", "0.5")
    assert done.returncode == 1
    assert f"{DEAD} is not healthy after 0.5 s" in done.stderr
    assert "--endpoint-timeout 600" in done.stderr
    assert "reading" not in done.stdout


def test_given_rank_and_world_size_of_another_job_then_arguments_overrule_them(checkpoint: Path) -> None:
    """Given a pod with RANK and WORLD_SIZE of its training job, then one source updates by itself when told to."""
    leftover = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    with fleet(SinkSpec()) as (sink,):
        update = ("update", "--checkpoint", checkpoint, "--version", "v2", "--sink", sink.address)
        done = run(*update, "--rank", "0", "--world-size", "1", environ={**ENVIRONMENT, **leftover})
        assert done.returncode == 0, done.stderr
        assert sink.state().holds(weights(2))


def test_given_more_ranks_than_a_plan_is_made_for_then_they_are_counted(checkpoint: Path) -> None:
    done = CliRunner().invoke(app, ["plan", "--checkpoint", str(checkpoint), "--hosts", "10000000", "--sinks", "8"])
    assert "80,000,001 ranks; a plan is made for at most 65,536" in str(done.exception)
