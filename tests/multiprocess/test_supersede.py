"""A newer update takes the place of one that has not held anything; else it waits for its end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ckpt_transport import Config, ParameterServer, ask_version
from ckpt_transport.errors import SupersededError, UpdateAbortedError
from ckpt_transport.update.turn import Turn
from ckpt_transport_torch.engine import TorchEngine
from tests.fleet import SinkProcess, SinkSpec, fleet, weights
from tests.patience import DEADLINE, PATIENT, SWIFT

SHAPE: dict[str, Any] = {"layers": 6, "width": 256}
NOBODY = "ipc:///tmp/ckpt-transport-nobody-listens-here"


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Is set when a newer update has asked for the turn of another."""
    supersede, event = Turn.supersede, threading.Event()

    def told(turn: Turn, newer: str) -> object:
        end = supersede(turn, newer)
        event.set()
        return end

    monkeypatch.setattr(Turn, "supersede", told)
    return event


def server_for(**settings: Any) -> ParameterServer:
    server = ParameterServer(Config.load(**{**PATIENT, "commit": "staged", **settings}))
    for seed in (2, 3, 4):
        server.register(f"v{seed}", tensors=weights(seed, **SHAPE))
    return server


def wait_until(met: Any) -> None:
    deadline = time.monotonic() + DEADLINE
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def check_serves(sink: SinkProcess, seed: int) -> None:
    state = sink.wait_until(lambda state: not state.served)
    assert (state.version, state.tainted) == (f"v{seed}", "")
    assert state.holds(weights(seed, **SHAPE))


def loads_when(path: Path) -> None:
    """Have the engine here load its first bucket when that file is there; another file says that it waits."""
    load = TorchEngine.load

    def waiting(engine: TorchEngine, bucket: Any) -> Any:
        path.with_suffix(".waits").touch()
        wait_until(path.exists)
        return load(engine, bucket)

    TorchEngine.load = waiting  # type: ignore[method-assign, assignment]


def test_given_a_staged_version_when_a_newer_one_supersedes_it_then_that_is_served_and_the_commit_says_so() -> None:
    with fleet(SinkSpec(SHAPE), SinkSpec(SHAPE)) as sinks, server_for() as server:
        addresses = [sink.address for sink in sinks]
        job = server.stage("v2", addresses)
        newer = server.stage("v3", addresses, supersede=True)
        with pytest.raises(SupersededError, match=r"stage\('v3'\) has taken the place of stage\('v2'\)"):
            job.commit()
        for sink in sinks:
            check_serves(sink, 1)
        newer.commit()
        for sink in sinks:
            check_serves(sink, 3)


def test_given_an_update_that_waits_for_a_sink_when_a_newer_one_supersedes_it_then_that_comes_through(
    threads: ThreadPoolExecutor,
) -> None:
    with fleet(SinkSpec(SHAPE)) as (sink,), server_for() as server:
        older = threads.submit(server.update, "v2", [sink.address, NOBODY])
        wait_until(lambda: ask_version(sink.address, server.config, timeout=DEADLINE).update == "v2")
        assert server.update("v3", [sink.address], supersede=True)
        with pytest.raises(SupersededError, match=r"update\('v3'\) has taken the place of update\('v2'\)"):
            older.result(DEADLINE)
        check_serves(sink, 3)


def test_given_an_update_whose_bytes_are_on_their_way_when_a_newer_one_supersedes_it_then_nothing_of_it_is_served(
    threads: ThreadPoolExecutor, tmp_path: Path, asked: threading.Event
) -> None:
    slow = SinkSpec(SHAPE, prepare=partial(loads_when, tmp_path / "go"))
    with fleet(SinkSpec(SHAPE), slow) as sinks, server_for() as server:
        addresses = [sink.address for sink in sinks]
        older = threads.submit(server.update, "v2", addresses)
        wait_until((tmp_path / "go.waits").exists)
        newer = threads.submit(server.publish, "v5", weights(5, **SHAPE), addresses, supersede=True)
        assert asked.wait(DEADLINE)
        (tmp_path / "go").touch()
        with pytest.raises(SupersededError):
            older.result(DEADLINE)
        assert newer.result(DEADLINE)
        for sink in sinks:
            check_serves(sink, 5)


def test_given_an_update_in_place_whose_bytes_are_on_their_way_when_a_newer_one_comes_then_it_ends_first(
    threads: ThreadPoolExecutor, tmp_path: Path, asked: threading.Event
) -> None:
    """Whoever broke it off would leave a mix."""
    slow = SinkSpec(SHAPE, prepare=partial(loads_when, tmp_path / "go"))
    with fleet(slow) as (sink,), server_for(commit="in_place") as server:
        older = threads.submit(server.update, "v2", [sink.address])
        wait_until((tmp_path / "go.waits").exists)
        newer = threads.submit(server.update, "v3", [sink.address], supersede=True)
        assert asked.wait(DEADLINE)
        (tmp_path / "go").touch()
        first, second = older.result(DEADLINE), newer.result(DEADLINE)
        assert first is not None
        assert second is not None
        assert (first.version, second.version) == ("v2", "v3")
        check_serves(sink, 3)


def test_given_an_update_that_is_about_to_hold_when_newer_ones_come_then_it_ends_and_the_last_one_follows(
    threads: ThreadPoolExecutor, asked: threading.Event
) -> None:
    """The first one is past the point where it could be dropped; the second one has not begun."""
    ready, go = threading.Event(), threading.Event()

    def wait() -> None:
        ready.set()
        assert go.wait(DEADLINE)

    with fleet(SinkSpec(SHAPE)) as (sink,), server_for() as server:
        first = threads.submit(server.update, "v2", [sink.address], None, wait)
        assert ready.wait(DEADLINE)
        second = threads.submit(server.update, "v3", [sink.address])
        wait_until(lambda: server._turns.waiting == 1)
        third = threads.submit(server.update, "v4", [sink.address], supersede=True)
        assert asked.wait(DEADLINE)
        with pytest.raises(SupersededError):
            second.result(DEADLINE)
        assert not first.done()
        go.set()
        assert first.result(DEADLINE)
        assert third.result(DEADLINE)
        check_serves(sink, 4)


def test_given_a_staged_version_when_another_thread_updates_without_superseding_then_it_waits_for_the_commit(
    threads: ThreadPoolExecutor,
) -> None:
    with fleet(SinkSpec(SHAPE)) as (sink,), server_for() as server:
        job = server.stage("v2", [sink.address])
        waiting = threads.submit(server.update, "v3", [sink.address])
        wait_until(lambda: server._turns.waiting == 1)
        job.commit()
        assert waiting.result(DEADLINE)
        check_serves(sink, 3)


def test_given_an_event_loop_then_the_newest_step_supersedes_those_that_have_not_begun_to_hold() -> None:
    async def train(server: ParameterServer, sink: SinkProcess) -> None:
        step = asyncio.create_task(server.awaiting(server.update, "v2", [sink.address, NOBODY]))
        while ask_version(sink.address, server.config, timeout=DEADLINE).update != "v2":
            await asyncio.sleep(0.01)
        report = await server.awaiting(server.update, "v3", [sink.address], supersede=True)
        assert report is not None
        with pytest.raises(SupersededError):
            await step

    with fleet(SinkSpec(SHAPE)) as (sink,), server_for() as server:
        asyncio.run(train(server, sink))
        check_serves(sink, 3)


def test_given_a_staged_version_whose_sink_is_gone_when_a_newer_one_supersedes_it_then_others_get_that() -> None:
    swift = {"heartbeat_timeout": SWIFT["heartbeat_timeout"], "join_timeout": 10.0}
    with fleet(SinkSpec(SHAPE), SinkSpec(SHAPE)) as sinks, server_for(**swift) as server:
        job = server.stage("v2", [sink.address for sink in sinks])
        sinks[1].process.kill()
        sinks[1].process.join(DEADLINE)
        server.update("v3", [sinks[0].address], supersede=True)
        with pytest.raises(UpdateAbortedError):
            job.commit()
        check_serves(sinks[0], 3)
