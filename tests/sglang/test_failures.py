"""Whatever fails at a call that drives SGLang, what was paused for an update is resumed, by that update or the next."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import httpx
import pytest

from ckpt_transport import CkptTransportError, EngineError, ParameterServer, ask_version
from ckpt_transport_sglang import SglangFleet
from tests.sglang.conftest import Start
from tests.sglang.servers import PATIENCE, Answers, Replica, swift, update
from tests.support import dying_leader

STUCK_SECONDS = 15
"""So long a forward pass sleeps; longer than whoever updates waits."""


@pytest.fixture(scope="module")
def replica(start: Start) -> Replica:
    """An engine that serves version 1."""
    return start("qwen3", 1).wait()


@pytest.fixture(scope="module")
def first(replica: Replica) -> Answers:
    """What it says at first."""
    return replica.answers()


def test_given_an_engine_that_is_known_then_it_is_found_paused_and_serves_again_by_one_request_each(
    replica: Replica, first: Answers
) -> None:
    asked: list[str] = []

    def note(request: httpx.Request) -> None:
        asked.append(f"{request.method} {request.url.path}")

    config = swift()
    with ParameterServer(config) as server, SglangFleet([replica.url], config) as fleet:
        server.register("one", directory=replica.checkpoint(1))
        fleet.update(server, "one")
        for engine in fleet._engines:
            engine._client.event_hooks["request"].append(note)
        fleet.update(server, "one")
    assert asked == ["POST /weights_checker"] * 3, "sinks are found, requests held, and requests served again"
    assert not replica.is_paused()
    assert replica.answers() == first


@pytest.mark.parametrize(("step", "brought"), [("pause", "one"), ("serve", "two")])
def test_given_a_source_that_is_killed_when_it_had_paused_then_the_next_update_ends_the_pause(
    replica: Replica, first: Answers, step: Literal["pause", "serve"], brought: str
) -> None:
    update([replica], replica.checkpoint(1), "one")
    command = dying_leader.command(SglangFleet, step, replica.checkpoint(2), replica.url)
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert replica.is_paused()
    assert [ask_version(sink).version for sink in replica.sinks()] == [brought]
    assert update([replica], replica.checkpoint(1), "one").problems == ()
    assert not replica.is_paused()
    assert replica.answers() == first


def test_given_a_forward_pass_that_takes_longer_than_whoever_updates_waits_then_the_pause_is_ended_and_it_serves_on(
    replica: Replica, first: Answers
) -> None:
    update([replica], replica.checkpoint(1), "one")
    with ThreadPoolExecutor(1) as asking:

        def be_stuck() -> None:
            replica.ask("POST", "/slow_down", {"forward_sleep_time": STUCK_SECONDS})
            asking.submit(replica.complete, tokens=1, timeout=PATIENCE)
            wait_until_stuck(replica)

        try:
            with pytest.raises(CkptTransportError, match="weights_checker does not answer") as raised:
                update([replica], replica.checkpoint(2), "two", happens=be_stuck, update_timeout=4.0)
        finally:
            replica.ask("POST", "/slow_down", {"forward_sleep_time": None}, PATIENCE)
    assert f"{replica.url} serves the old version" in raised.value.__notes__
    assert not replica.is_paused()
    assert (replica.answers(), replica.version()) == (first, "one")


def test_given_a_server_that_is_resumed_by_hand_during_an_update_then_the_report_says_so(
    replica: Replica, first: Answers
) -> None:
    config = swift()
    with (
        replica.driven() as control,
        ParameterServer(config) as server,
        SglangFleet([replica.url], config) as fleet,
    ):
        server.register("one", directory=replica.checkpoint(1))
        done = fleet.update(server, "one", progress=lambda moved, total: control.resume())
    assert done is not None
    (problem,) = done.problems
    assert problem.startswith(f"{replica.url} was resumed by others while it was paused for an update")
    assert replica.answers() == first


@pytest.mark.parametrize("mode", ["in_place", "retract", "abort"])
def test_given_a_server_that_is_paused_by_hand_during_an_update_then_it_has_the_version_and_stays_paused(
    replica: Replica, first: Answers, mode: str
) -> None:
    def pause(moved: int, total: int) -> None:
        replica.ask("POST", "/pause_generation", {"mode": mode}, PATIENCE)

    update([replica], replica.checkpoint(2), "two")
    config = swift()
    with ParameterServer(config) as server, SglangFleet([replica.url], config) as fleet:
        server.register("one", directory=replica.checkpoint(1))
        done = fleet.update(server, "one", progress=pause)
        assert done is not None
        (problem,) = done.problems
        assert problem.startswith(f"{replica.url} is left paused, as others have asked of it")
        assert replica.is_paused()
        again = fleet.update(server, "one")
        assert again is not None
        assert again.problems == (problem,), "the next update does not end it, either"
    assert replica.is_paused()
    replica.ask("POST", "/continue_generation", {})
    assert (replica.answers(), replica.version()) == (first, "one")


def test_given_an_update_that_fails_when_somebody_has_paused_beside_it_then_that_pause_is_not_ended(
    replica: Replica, first: Answers
) -> None:
    """Nothing was written yet; the pause of the update is ended, and the other one goes on."""
    update([replica], replica.checkpoint(1), "one")
    with pytest.raises(CkptTransportError, match="nobody goes on") as raised:
        update([replica], replica.checkpoint(2), "two", when_paused=functools.partial(pause_and_fail, replica))
    assert any(note.startswith(f"{replica.url} is left paused, as others") for note in raised.value.__notes__)
    assert replica.is_paused()
    replica.ask("POST", "/continue_generation", {})
    assert (replica.answers(), replica.version()) == (first, "one")


def pause_and_fail(replica: Replica) -> None:
    replica.ask("POST", "/pause_generation", {"mode": "in_place"})
    raise EngineError("nobody goes on")


def test_given_weights_whose_memory_was_given_back_then_an_update_is_refused_until_they_are_there_again(
    replica: Replica, first: Answers
) -> None:
    """SGLang on a CPU keeps the memory, and knows that it was asked to give it back."""
    update([replica], replica.checkpoint(1), "one")
    replica.ask("POST", "/release_memory_occupation", {})
    with pytest.raises(
        CkptTransportError, match="given back the memory of its weights; POST /resume_memory_occupation"
    ):
        update([replica], replica.checkpoint(2), "two")
    assert not replica.is_paused()
    replica.ask("POST", "/resume_memory_occupation", {})
    assert (replica.answers(), replica.version()) == (first, "one")


def test_given_a_cache_whose_memory_was_given_back_then_an_update_comes_and_is_served_when_it_is_there_again(
    replica: Replica, first: Answers
) -> None:
    """So do trainers on the same GPU: weights wake up, are updated, and then the cache does."""
    second, again = replica.loaded_by_itself(2), replica.loaded_by_itself(1)
    assert again == first != second
    replica.ask("POST", "/release_memory_occupation", {})
    replica.ask("POST", "/resume_memory_occupation", {"tags": ["weights"]})
    assert update([replica], replica.checkpoint(2), "two").problems == ()
    replica.ask("POST", "/resume_memory_occupation", {"tags": ["kv_cache", "cuda_graph"]})
    assert (replica.answers(), replica.version()) == (second, "two")


def test_given_an_engine_that_dies_when_it_is_to_be_paused_then_it_is_named_and_the_others_serve_on(
    replica: Replica, first: Answers, start: Start
) -> None:
    update([replica], replica.checkpoint(1), "one")
    other = start("qwen3", 2).wait()

    def die() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(other.process.pid, signal.SIGKILL)
        other.process.wait(PATIENCE)

    with pytest.raises(CkptTransportError, match=other.url) as raised:
        update([replica, other], replica.checkpoint(2), "two", happens=die)
    assert f"{replica.url} serves the old version" in raised.value.__notes__
    assert not replica.is_paused()
    assert (replica.answers(), replica.version()) == (first, "one")


def wait_until_stuck(replica: Replica) -> None:
    """Wait until its scheduler answers nothing, because a forward pass sleeps."""
    deadline = time.monotonic() + PATIENCE
    with replica.driven() as control:
        while time.monotonic() < deadline:
            try:
                control.call_ranks("describe", 1.0)
            except EngineError:
                return
    raise AssertionError("no forward pass sleeps, though there is a request")
