"""Commands stage a version, take it back, and say what a sink can go back to."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_transport import Config, JoinError, ask_version
from ckpt_transport.service.query import ANSWER_SECONDS
from tests.fleet import SinkProcess, SinkSpec, fleet, weights
from tests.patience import DEADLINE, PATIENT
from tests.support.commands import run
from tests.vllm_stub import StubServer


@pytest.fixture
def checkpoints(tmp_path: Path) -> dict[int, Path]:
    """By seed."""
    found = {seed: tmp_path / f"v{seed}.safetensors" for seed in (2, 3)}
    for seed, path in found.items():
        save_file(weights(seed), path)
    return found


def update(checkpoints: dict[int, Path], seed: int, *options: str) -> str:
    done = run("update", "--checkpoint", checkpoints[seed], "--version", f"v{seed}", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def at(sinks: list[SinkProcess]) -> list[str]:
    return [option for sink in sinks for option in ("--sink", sink.address)]


def test_given_two_sinks_when_versions_were_staged_then_a_rollback_serves_the_one_before(
    checkpoints: dict[int, Path],
) -> None:
    with fleet(SinkSpec(), SinkSpec()) as sinks:
        addresses = [sink.address for sink in sinks]
        for seed in (2, 3):
            said = update(checkpoints, seed, *at(sinks), "--commit", "staged")
            assert "ms, to exchange what is served" in said
        for seed, other in ((2, 3), (3, 2)):
            done = run("rollback", *addresses)
            assert (done.returncode, done.stderr) == (0, "")
            assert f"v{seed} is served by 2 sinks after" in done.stdout
            assert "forward passes were held for at most" in done.stdout
            assert all(sink.state().holds(weights(seed)) for sink in sinks)
            shown = run("version", "--timeout", DEADLINE, *addresses)
            assert shown.returncode == 0
            assert "can go back to" in shown.stdout
            served = json.loads(run("version", "--timeout", DEADLINE, "--json", *addresses).stdout)
            assert {(each["version"], each["previous"]) for each in served.values()} == {(f"v{seed}", f"v{other}")}


def test_given_replicas_then_the_version_command_tells_by_a_digest_whether_they_serve_the_same_bytes(
    checkpoints: dict[int, Path],
) -> None:
    """A third one is brought other bytes under the same name."""
    with fleet(SinkSpec(), SinkSpec(), SinkSpec()) as sinks:
        update(checkpoints, 2, *at(sinks[:2]), "--commit", "staged")
        save_file(weights(3), checkpoints[2])
        update(checkpoints, 2, *at(sinks[2:]))
        addresses = [sink.address for sink in sinks]
        answers = json.loads(run("version", "--digest", "--timeout", DEADLINE, "--json", *addresses).stdout)
        same, too, other = (answers[address]["digest"] for address in addresses)
        assert {each["version"] for each in answers.values()} == {"v2"}
        assert same == too != other
        assert same == ask_version(addresses[0], timeout=DEADLINE, digest=True).digest
        shown = run("version", "--digest", "--timeout", DEADLINE, *addresses).stdout
        assert "digest" in shown
        assert "digest" not in run("version", "--timeout", DEADLINE, *addresses).stdout


def test_given_a_sink_that_takes_long_then_a_digest_is_waited_for_and_its_error_is_not_that_nobody_is_there() -> None:
    """It stands still, first until somebody has given up and then for longer than a plain question waits."""
    with fleet(SinkSpec()) as (sink,):
        process = sink.process.pid
        assert process is not None
        os.kill(process, signal.SIGSTOP)
        goes_on = threading.Timer(ANSWER_SECONDS + 1, os.kill, (process, signal.SIGCONT))
        try:
            given_up = run("version", "--digest", "--timeout", 0.5, sink.address, "--json")
            error = json.loads(given_up.stdout)[sink.address]["error"]
            assert "no digest" in error
            assert "longer timeout" in error
            with pytest.raises(JoinError, match="is a sink running there"):
                ask_version(sink.address, timeout=0.5)
            goes_on.start()
            assert ask_version(sink.address, digest=True).digest
        finally:
            goes_on.cancel()
            os.kill(process, signal.SIGCONT)
        assert json.loads(run("version", "--digest", sink.address, "--json").stdout)[sink.address]["digest"]


def test_given_an_update_in_place_when_it_is_to_be_rolled_back_then_that_is_refused_and_says_why(
    checkpoints: dict[int, Path],
) -> None:
    with fleet(SinkSpec()) as (sink,):
        assert "ms, to write it in place" in update(checkpoints, 2, *at([sink]), "--commit", "in_place")
        done = run("rollback", sink.address)
        assert done.returncode == 1
        assert "serves 'v2' and has kept none" in done.stderr
        assert sink.state().holds(weights(2))


def test_given_a_sink_that_cannot_stage_when_it_may_be_written_in_place_then_the_command_says_so(
    checkpoints: dict[int, Path],
) -> None:
    with fleet(SinkSpec(settings={"staging_budget": "1KiB"})) as (sink,):
        assert "it was written in place:" in update(checkpoints, 2, *at([sink]), "--commit", "auto")
        done = run(
            "update", "--checkpoint", checkpoints[3], "--version", "v3", "--sink", sink.address, "--commit", "staged"
        )
        assert done.returncode == 1
        assert "staging_budget is 1,024" in done.stderr
        assert sink.state().holds(weights(2))


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ((), 1, "an update needs sinks"),
        (("ipc:///tmp/a", "--engine", "vllm", "--endpoint", "http://127.0.0.1:1"), 2, "not both"),
        (("--engine", "vllm"), 2, "belong together"),
        (("ipc:///tmp/a", "--pause", "wait"), 2, "--pause is for requests at --endpoint"),
        (("--commit", "now"), 2, "No such option"),
    ],
)
def test_given_options_that_do_not_go_together_when_rolled_back_then_nothing_is_asked(
    options: tuple[str, ...], code: int, said: str
) -> None:
    done = run("rollback", *options)
    assert done.returncode == code
    assert said in done.stderr


def test_given_a_way_to_commit_that_there_is_not_then_the_update_is_refused(checkpoints: dict[int, Path]) -> None:
    done = run("update", "--checkpoint", checkpoints[2], "--version", "v2", "--sink", "ipc:///a", "--commit", "soon")
    assert done.returncode == 1
    assert "bad value for 'commit' in the arguments" in done.stderr


def test_given_an_engine_at_an_endpoint_when_a_staged_version_is_rolled_back_then_it_serves_and_is_named_as_before(
    checkpoints: dict[int, Path],
) -> None:
    with StubServer(Config.load(**PATIENT)) as engine:
        there = ("--engine", "vllm", "--endpoint", engine.url)
        for seed in (2, 3):
            assert "requests were held for" in update(checkpoints, seed, *there, "--commit", "staged")
        done = run("rollback", *there)
        assert (done.returncode, done.stderr) == (0, "")
        assert "v2 is served by 1 sink after" in done.stdout
        assert f"{engine.url}: requests were held for" in done.stdout
        assert not engine.paused
        held = engine.model.state_dict()
        assert all(torch.equal(held[name], tensor) for name, tensor in weights(2).items())
        assert (engine.label, ask_version(engine.attached.address, timeout=DEADLINE).previous) == ("v2", "v3")
