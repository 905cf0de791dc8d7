"""Given vLLMs that a program holds as Python objects, then a fleet reaches them as it reaches servers.

The objects here serve a plain module through its real sink; those of vLLM are in tests/vllm.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import ConfigError, EngineError
from ckpt_transport.service.fleet import FleetReport
from ckpt_transport_vllm import VllmFleet, VllmHandle, object_calls
from ckpt_transport_vllm.object_calls import ObjectCalls
from tests.fleet import weights
from tests.held_vllm import Asynchronous, Held, Pausing
from tests.patience import PATIENT
from tests.vllm_stub import StubServer

PATIENCE = 60.0


@pytest.fixture
def config() -> Config:
    return Config.load(**PATIENT)


@pytest.fixture
def held(config: Config) -> Iterator[Callable[[type[Held]], Any]]:
    """Makes objects, and closes their sinks at the end."""
    made: list[Held] = []

    def make(kind: type[Held], **arguments: Any) -> Held:
        made.append(kind(config, **arguments))
        return made[-1]

    yield make
    for each in made:
        each.attached.close()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that turns in a thread of its own."""
    turning = asyncio.new_event_loop()
    thread = threading.Thread(target=turning.run_forever)
    thread.start()
    yield turning
    turning.call_soon_threadsafe(turning.stop)
    thread.join(PATIENCE)
    turning.close()


def update(endpoints: list[Any], config: Config, pause: str = "keep") -> FleetReport:
    with ParameterServer(config) as server, VllmFleet(endpoints, config, pause) as fleet:
        server.register("v2", tensors=weights(2))
        done = fleet.update(server, "v2")
        assert done is not None
        return done


def serves_two(module: torch.nn.Module) -> bool:
    return all(torch.equal(module.state_dict()[name], tensor) for name, tensor in weights(2).items())


def test_given_a_url_and_two_kinds_of_objects_then_one_plan_updates_all_and_each_is_paused_its_way(
    config: Config, held: Callable[[type[Held]], Any], loop: asyncio.AbstractEventLoop
) -> None:
    offline, online = held(Pausing), held(Asynchronous)
    with StubServer(config) as server:
        done = update([server.url, offline, VllmHandle(online, loop)], config)
        assert done.problems == ()
        assert len(done.update.plan.topology.sinks) == 3
        assert [name.split()[0] for name in done.held] == [server.url, "Pausing", "Asynchronous"]
        assert all(serves_two(each.model) for each in (server, offline, online))
    assert [said for said in offline.called if " " in said] == [
        "sleep 0 keep",
        "reset True",
        "wake up ['scheduling']",
    ]
    assert "pause keep False" in online.called
    assert not online.paused


def test_given_an_object_that_somebody_else_has_paused_then_it_gets_the_version_and_stays_paused(
    config: Config, held: Callable[[type[Held]], Any]
) -> None:
    offline = held(Pausing)
    offline.sleep(1, "abort")
    done = update([offline], config)
    assert serves_two(offline.model)
    assert offline.sleeps
    (problem,) = done.problems
    assert "is left paused, as others have asked" in problem
    assert "wake_up()" in problem


def test_given_an_object_that_does_not_say_whether_it_is_paused_then_its_pause_is_known_all_the_same(
    config: Config, held: Callable[[type[Held]], Any]
) -> None:
    offline = held(Pausing)
    offline.llm_engine = None
    assert update([offline], config).problems == ()
    assert serves_two(offline.model)
    assert not offline.sleeps


def test_given_an_object_that_cannot_hold_requests_then_it_is_updated_without_and_refused_otherwise(
    config: Config, held: Callable[[type[Held]], Any]
) -> None:
    plain = held(Held)
    with pytest.raises(ConfigError, match=r"neither pause_generation nor sleep.*choose the pause 'none'"):
        VllmFleet([plain], config)
    assert update([plain], config, pause="none").problems == ()
    assert serves_two(plain.model)


def test_given_an_object_that_caches_prefixes_and_cannot_drop_them_then_nothing_changes(
    config: Config, held: Callable[..., Any]
) -> None:
    plain = held(Held, caches="yes")
    with pytest.raises(EngineError, match=r"caches prefixes, and has no reset_prefix_cache.*enable_prefix_caching"):
        update([plain], config, pause="none")
    assert not serves_two(plain.model)


def test_given_what_is_no_vllm_or_is_given_twice_then_it_is_refused(
    config: Config, held: Callable[[type[Held]], Any]
) -> None:
    with pytest.raises(ConfigError, match=r"a Linear is no vLLM: give a URL, or an object that has collective_rpc"):
        VllmFleet([torch.nn.Linear(1, 1)], config)
    offline = held(Pausing)
    with pytest.raises(ConfigError, match=r"Pausing \d+ of process \d+ on .* is given twice"):
        VllmFleet([offline, offline], config)


def test_given_workers_without_our_methods_then_none_is_called_and_the_error_says_what_to_install(
    config: Config, held: Callable[[type[Held]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = held(Pausing)
    monkeypatch.setattr(offline, "collective_rpc", lambda method, **_: [["execute_model"]])
    with pytest.raises(EngineError, match=r"its workers have no methods of ckpt_transport; install ckpt-transport"):
        update([offline], config)


def test_given_a_loop_then_a_fleet_made_there_is_called_from_a_thread_and_refuses_to_block_it(
    config: Config, held: Callable[[type[Held]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_calls, "LOOP_SECONDS", 0.2)
    online = held(
        Asynchronous,
    )
    with pytest.raises(ConfigError, match="answers in an event loop, and none runs here"):
        VllmFleet([online], config)

    async def program() -> None:
        with ParameterServer(config) as server, VllmFleet([online], config) as fleet:
            server.register("v2", tensors=weights(2))
            with pytest.raises(EngineError, match=r"loop .* does not turn: .* await asyncio\.to_thread\(fleet\.update"):
                fleet.update(server, "v2")
            monkeypatch.setattr(object_calls, "LOOP_SECONDS", PATIENCE)
            await asyncio.to_thread(fleet.update, server, "v2")

    asyncio.run(program())
    assert serves_two(online.model)


def test_given_a_method_that_does_not_return_then_its_call_ends_in_time_and_no_other_begins_beside_it() -> None:
    let_go, calls = threading.Event(), []

    def slow() -> None:
        calls.append("slow")
        let_go.wait(PATIENCE)

    def failing() -> None:
        raise KeyError("nothing")

    engine = SimpleNamespace(slow=slow, quick=lambda: calls.append("quick"), failing=failing)
    held = ObjectCalls(engine, "it", None)
    for method in ("slow", "quick"):
        with pytest.raises(EngineError, match=rf"{method} of it has not returned within 0\.05 s"):
            held.call(method, 0.05)
    assert calls == ["slow"]
    let_go.set()
    held.call("quick", PATIENCE)
    assert calls == ["slow", "quick"]
    with pytest.raises(EngineError, match="failing of it failed with KeyError: 'nothing'"):
        held.call("failing", PATIENCE)
    with pytest.raises(EngineError, match="it has no method missing"):
        held.call("missing", PATIENCE)


def test_given_a_coroutine_that_does_not_end_then_it_is_cancelled_at_its_deadline(
    loop: asyncio.AbstractEventLoop,
) -> None:
    cancelled = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            cancelled.set()

    started = time.monotonic()
    with pytest.raises(EngineError, match=r"forever of it has not returned within 0\.1 s"):
        ObjectCalls(SimpleNamespace(forever=forever), "it", loop).call("forever", 0.1)
    assert cancelled.wait(PATIENCE)
    assert time.monotonic() - started < PATIENCE
