"""Several sources want the same sinks, and one sink has several names."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from ckpt_transport import Config, ParameterServer, ask_version
from ckpt_transport.errors import ConfigError, JoinError, UpdateAbortedError
from tests.fleet import SinkSpec, context, fleet, weights
from tests.injection import Fault
from tests.patience import DEADLINE, PATIENT, with_enough_seconds

ROUNDS = 4


def competing_source(seed: int, sinks: Sequence[str], pipe: Connection) -> None:
    """A source that updates the sinks whenever it is told to."""
    with ParameterServer(Config.load(transport="shm", **PATIENT)) as server:
        server.register(f"v{seed}", tensors=weights(seed))
        pipe.send("ready")
        while pipe.recv() == "update":
            try:
                server.update(f"v{seed}", sinks)
                pipe.send("")
            except Exception as error:
                pipe.send(f"{type(error).__name__}: {error}")


def answer(pipe: Connection) -> str:
    assert pipe.poll(DEADLINE)
    return str(pipe.recv())


def test_given_two_sources_and_opposite_orders_when_they_start_together_then_both_updates_succeed() -> None:
    """Given the same sinks in opposite orders, when both update them at once, then one comes after the other."""
    with fleet(SinkSpec(), SinkSpec(), SinkSpec()) as sinks:
        addresses = [sink.address for sink in sinks]
        pipes, sources = [], []
        for seed, order in ((2, addresses), (3, addresses[::-1])):
            ours, theirs = context.Pipe()
            source = context.Process(target=competing_source, args=(seed, order, theirs), daemon=True)
            source.start()
            pipes.append(ours)
            sources.append(source)
        assert [answer(pipe) for pipe in pipes] == ["ready", "ready"]
        for _ in range(ROUNDS):
            for pipe in pipes:
                pipe.send("update")
            assert [answer(pipe) for pipe in pipes] == ["", ""]
            states = [sink.state() for sink in sinks]
            (version,) = {state.version for state in states}
            assert all(state.holds(weights(int(version[1:]))) and not state.served for state in states)
        for pipe, source in zip(pipes, sources, strict=True):
            pipe.send("stop")
            source.join(DEADLINE)


def test_given_a_sink_that_another_source_updates_for_long_then_that_is_said_and_what_was_asked_too_is_free() -> None:
    """Given two sinks of which one is busy, when the other is asked for first, then who waits for whom is said."""
    slow, free = SinkSpec(fault=Fault("load", act="hang")), SinkSpec()
    with fleet(slow, free) as sinks:
        ours, theirs = context.Pipe()
        source = context.Process(target=competing_source, args=(2, [sinks[0].address], theirs), daemon=True)
        source.start()
        assert answer(ours) == "ready"
        ours.send("update")
        deadline = time.monotonic() + DEADLINE
        while not ask_version(sinks[0].address, timeout=DEADLINE).update:
            assert time.monotonic() < deadline, "its update does not begin"
            time.sleep(0.02)

        def is_told(seconds: float) -> bool:
            brief = Config.load(transport="shm", **{**PATIENT, "join_timeout": seconds})
            with ParameterServer(brief) as waiting:
                waiting.register("v3", tensors=weights(3))
                with pytest.raises(UpdateAbortedError) as caught:
                    waiting.update("v3", [sinks[1].address, sinks[0].address])
            assert isinstance(caught.value.__cause__, JoinError)
            told = "sink 0 takes part in an update to 'v2' led by ipc" in str(caught.value)
            return told and "is it running" not in str(caught.value)

        with_enough_seconds(is_told)
        with ParameterServer(Config.load(transport="shm", **PATIENT)) as other:
            other.register("v3", tensors=weights(3))
            other.update("v3", [sinks[1].address])
        assert sinks[1].state().holds(weights(3))
        for process in (source, sinks[0].process):
            process.kill()
            process.join()


def names_of_one(folder: Path, kind: str) -> tuple[str, list[str]]:
    """Where a sink listens, and two names of that address."""
    if kind == "symlink":
        os.symlink(folder, folder / "link")
        return f"ipc://{folder}/sink", [f"ipc://{folder}/sink", f"ipc://{folder}/link/sink"]
    return f"ipc://{folder}/sink", [f"ipc://{folder}/../{folder.name}/sink", f"ipc:///{folder}/sink"]


@pytest.mark.parametrize("kind", ["symlink", "spelling"])
def test_given_a_sink_with_two_paths_then_both_are_named_at_once(tmp_path: Path, kind: str) -> None:
    folder = Path(f"/tmp/{tmp_path.name}-{os.getpid()}")
    folder.mkdir()
    try:
        address, names = names_of_one(folder, kind)
        with fleet(SinkSpec(address=address), SinkSpec()) as sinks:
            refused_at_once([names[0], sinks[1].address, names[1]], (names[0], names[1]))
            assert [sink.state().version for sink in sinks] == ["v1", "v1"]
    finally:
        (folder / "link").unlink(missing_ok=True)
        folder.rmdir()


def test_given_a_sink_with_two_host_names_then_both_are_named_at_once() -> None:
    with fleet(SinkSpec(address="tcp://127.0.0.1:0", settings={"insecure": True})) as (sink,):
        other = f"tcp://localhost:{sink.address.rpartition(':')[2]}"
        refused_at_once([sink.address, other], (sink.address, other), insecure=True)


def refused_at_once(addresses: Sequence[str], twice: tuple[str, str], **settings: Any) -> None:
    with ParameterServer(Config.load(**{**PATIENT, **settings})) as server:
        server.register("v2", tensors=weights(2))
        started = time.monotonic()
        with pytest.raises(UpdateAbortedError) as caught:
            server.update("v2", addresses)
        assert isinstance(caught.value.__cause__, ConfigError)
        one, other = twice
        either = (f"{one} and {other}", f"{other} and {one}")
        assert any(f"{both} are the same one, sink 0 at" in str(caught.value) for both in either)
        assert time.monotonic() - started < PATIENT["join_timeout"] / 2


def test_given_a_short_deadline_when_a_sink_does_not_come_then_no_time_below_zero_is_said(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckpt_transport.update.invitations.TELL_SECONDS", 0.5)
    with ParameterServer(Config.load(**{**PATIENT, "join_timeout": 0.5})) as server:
        server.register("v2", tensors=weights(2))
        with pytest.raises(UpdateAbortedError, match="is it running"):
            server.update("v2", [f"ipc://{tmp_path}/nobody"])
    assert "more for" not in caplog.text
