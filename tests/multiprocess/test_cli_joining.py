"""serve, join and update --ranks as commands."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from safetensors.torch import save_file

from ckpt_transport import AddressFile
from tests.fleet import SinkSpec, fleet, weights
from tests.patience import DEADLINE
from tests.support.commands import ENVIRONMENT, Command, run, running


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(weights(2), folder / "model.safetensors")
    return folder


def sinks_of(addresses: Sequence[str]) -> list[str]:
    return [word for address in addresses for word in ("--sink", address)]


@contextmanager
def serving(checkpoint: Path, metas: Path, version: str = "v2") -> Iterator[Command]:
    with running("serve", "--checkpoint", checkpoint, "--version", version, "--save-metas", metas) as command:
        deadline = time.monotonic() + DEADLINE
        while not metas.exists():
            assert not command.ended(), f"serve has ended: {command.errors()}"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield command
        command.interrupt(signal.SIGTERM)
        assert command.wait() == 128 + signal.SIGTERM


def test_given_two_commands_that_serve_when_engines_join_then_they_have_the_version(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Given two holders, when sinks join by command, then they have the version, and holders say what they hold."""
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    with fleet(SinkSpec(), SinkSpec()) as sinks, serving(checkpoint, paths[0]), serving(checkpoint, paths[1]):
        holder = msgspec.json.decode(paths[0].read_bytes(), type=AddressFile).holders[0].address
        assert "v2" in run("version", "--timeout", DEADLINE, holder).stdout
        done = run("join", "--metas", paths[0], "--metas", paths[1], *sinks_of([sink.address for sink in sinks]))
        assert done.returncode == 0, done.stderr
        assert "v2 is served by 2 sinks" in done.stdout
        assert "1 sends" in done.stdout
        assert "2 sends" in done.stdout
        for sink in sinks:
            assert sink.state().version == "v2"
            assert sink.state().holds(weights(2))


def test_given_a_holder_that_has_ended_then_it_is_named_with_the_cure(checkpoint: Path, tmp_path: Path) -> None:
    metas = tmp_path / "metas.json"
    with fleet(SinkSpec()) as (sink,):
        with serving(checkpoint, metas):
            pass
        environment = {**ENVIRONMENT, "CKPT_TRANSPORT_JOIN_TIMEOUT": "5"}
        done = run("join", "--metas", metas, "--sink", sink.address, environ=environment)
        assert done.returncode == 1
        assert "it does not answer" in done.stderr
        assert "start one with 'ckpt-transport serve'" in done.stderr
        assert sink.state().version == "v1"


@pytest.mark.parametrize(
    ("method", "ranks", "updated"),
    [
        ("broadcast", None, [0, 1, 2]),
        ("p2p", "0,2", [0, 2]),
        ("p2p", "1-2", [1, 2]),
        ("p2p", None, [0, 1, 2]),
        ("all", "1", [0, 1, 2]),
        ("all", None, [0, 1, 2]),
    ],
)
def test_given_a_method_and_ranks_then_they_choose_who_is_updated(
    checkpoint: Path, method: str, ranks: str | None, updated: list[int]
) -> None:
    with fleet(SinkSpec(), SinkSpec(), SinkSpec()) as sinks:
        chosen = [] if ranks is None else ["--ranks", ranks]
        done = run(
            "update", "--checkpoint", checkpoint, "--version", "v2", "--update-method", method, *chosen,
            *sinks_of([sink.address for sink in sinks]),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert [rank for rank, sink in enumerate(sinks) if sink.state().version == "v2"] == updated
        assert all(sink.state().holds(weights(2 if rank in updated else 1)) for rank, sink in enumerate(sinks))


def test_given_ranks_of_one_engine_when_one_alone_is_asked_for_then_that_is_refused(checkpoint: Path) -> None:
    with fleet(SinkSpec(engine="pair"), SinkSpec(engine="pair")) as sinks:
        done = run(
            "update", "--checkpoint", checkpoint, "--version", "v2", "--update-method", "p2p", "--ranks", "0",
            *sinks_of([sink.address for sink in sinks]),
        )  # fmt: skip
        assert done.returncode == 1
        assert "are ranks of one engine (pair)" in done.stderr
        assert [sink.state().version for sink in sinks] == ["v1", "v1"]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("--ranks", "0"), 2, "a broadcast is to all sinks"),
        (("--update-method", "p2p", "--ranks", "3"), 1, "there are 1 sinks"),
        (("--update-method", "p2p", "--ranks", "one"), 2, "must be numbers and ranges"),
    ],
)
def test_given_ranks_that_make_no_sense_then_they_are_refused(
    checkpoint: Path, arguments: tuple[str, ...], code: int, complaint: str
) -> None:
    done = run("update", "--checkpoint", checkpoint, "--version", "v2", "--sink", "ipc:///tmp/nobody", *arguments)
    assert done.returncode == code
    assert complaint in done.stderr


def test_given_a_join_that_lacks_something_then_what_is_missing_is_said(tmp_path: Path) -> None:
    assert "--endpoint" in run("join").stderr
    assert "--metas" in run("join", "--sink", "ipc:///tmp/nobody").stderr
    assert "cannot be read" in run("join", "--sink", "ipc:///tmp/nobody", "--metas", tmp_path / "none.json").stderr
