"""Commands answer programs in JSON, and people are told the rest on standard error."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ckpt_transport import Config
from ckpt_transport.service.query import ask_version
from tests.fleet import HolderSpec, SinkSpec, fleet, holders, weights
from tests.patience import DEADLINE, PATIENT
from tests.support.commands import ENVIRONMENT, run, running
from tests.vllm_stub import StubServer

KEYS = {
    "version",
    "seconds",
    "phases",
    "predicted_run_seconds",
    "slowest_link",
    "transports",
    "tensors",
    "bytes",
    "buckets",
    "staged",
    "in_place",
    "intake",
    "sinks",
    "lost",
    "left",
}


def told(*arguments: object) -> dict[str, Any]:
    """The one update that a command that ends well tells of."""
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["problems"] == []
    (update,) = document["updates"]
    assert set(update) >= KEYS
    assert abs(update["seconds"] - sum(update["phases"].values())) < 1e-6
    return dict(update)


def test_given_two_sinks_when_they_are_updated_and_rolled_back_then_each_command_tells_it_in_one_document(
    tmp_path: Path,
) -> None:
    for seed in (2, 3):
        save_file(weights(seed), tmp_path / f"v{seed}.safetensors")
    nbytes = sum(tensor.nbytes for tensor in weights(2).values())
    with fleet(SinkSpec(), SinkSpec()) as sinks:
        at = [option for sink in sinks for option in ("--sink", sink.address)]
        for seed in (2, 3):
            checkpoint = tmp_path / f"v{seed}.safetensors"
            update = told("update", f"--checkpoint={checkpoint}", f"--version=v{seed}", "--commit=staged", *at)
            assert (update["version"], update["bytes"], update["tensors"]) == (f"v{seed}", nbytes, len(weights(2)))
            assert (update["staged"], update["in_place"]) == (True, "")
            assert update["transports"] == ["shm"]
            assert [sink["label"] for sink in update["sinks"]] == ["sink 0", "sink 1"]
            assert all(sink["held_seconds"] >= 0 for sink in update["sinks"])
        back = told("rollback", *(sink.address for sink in sinks))
        assert (back["version"], back["staged"]) == ("v2", True)
        assert all(sink.state().holds(weights(2)) for sink in sinks)


def test_given_a_holder_when_a_sink_joins_then_the_command_tells_it_in_one_document(tmp_path: Path) -> None:
    with holders(HolderSpec(seed=2)) as (holder,), fleet(SinkSpec()) as (sink,):
        joined = told("join", "--metas", holder.save(tmp_path / "v2.json"), "--sink", sink.address)
        assert joined["version"] == "v2"
        assert [joiner["label"] for joiner in joined["sinks"]] == ["sink 0"]
        assert sink.state().holds(weights(2))


def test_given_a_version_that_is_held_then_a_program_reads_where_in_one_line(tmp_path: Path) -> None:
    save_file(weights(2), tmp_path / "model.safetensors")
    with running("serve", f"--checkpoint={tmp_path}", "--version=v2", "--json") as command:
        deadline = time.monotonic() + DEADLINE
        while not (line := command.printed()).endswith("\n"):
            assert not command.ended(), command.errors()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        held = json.loads(line)
        assert (held["version"], held["tensors"]) == ("v2", len(weights(2)))
        assert ask_version(held["address"], timeout=DEADLINE).version == "v2"
        assert "is held at" in command.errors()
        command.interrupt(signal.SIGTERM)
        command.wait()


def test_given_a_sink_that_is_not_in_doubt_when_it_is_resolved_then_the_exit_code_says_so() -> None:
    with fleet(SinkSpec()) as (sink,):
        done = run("resolve", sink.address, "--forward", "--json", "--timeout", DEADLINE)
        assert (done.returncode, done.stdout) == (1, "")
        assert "is not in doubt" in done.stderr


def test_given_an_engine_at_an_endpoint_when_it_is_updated_then_the_document_says_how_long_requests_were_held(
    tmp_path: Path,
) -> None:
    save_file(weights(2), tmp_path / "model.safetensors")
    with StubServer(Config.load(**PATIENT)) as server:
        there = ("--engine", "vllm", "--endpoint", server.url)
        update = told("update", f"--checkpoint={tmp_path}", "--version=v2", *there)
        (engine,) = update["engines"]
        assert engine["endpoint"] == server.url
        assert engine["held_seconds"] > 0
        assert "update" in update["steps"]


def test_given_a_sink_that_is_not_there_then_nothing_is_written_for_programs_and_the_exit_code_says_so(
    tmp_path: Path,
) -> None:
    save_file(weights(2), tmp_path / "model.safetensors")
    sink = "ipc:///tmp/nobody"
    hasty = {**ENVIRONMENT, "CKPT_TRANSPORT_JOIN_TIMEOUT": "1"}
    done = run("update", f"--checkpoint={tmp_path}", "--version=v2", "--sink", sink, "--json", environ=hasty)
    assert (done.returncode, done.stdout) == (1, "")
    assert sink in done.stderr
