"""A training loop that lives in an event loop awaits its updates, and can cancel them."""

from __future__ import annotations

import asyncio
import time

import pytest
import torch

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import JoinError, UpdateAbortedError
from tests.fleet import SinkSpec, fleet, weights
from tests.patience import PATIENT
from tests.support.ports import free_port

CONFIG = Config.load(**PATIENT)


def test_given_an_event_loop_then_updates_are_awaited_one_after_the_other_while_it_goes_on() -> None:
    async def train(server: ParameterServer, addresses: list[str]) -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        beside = asyncio.create_task(tick())
        steps = (server.awaiting(server.publish, f"step-{seed}", weights(seed), addresses) for seed in (2, 3))
        reports = await asyncio.gather(*steps)
        beside.cancel()
        assert {report.version for report in reports if report is not None} == {"step-2", "step-3"}
        return ticks

    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        assert asyncio.run(train(server, [sink.address])) > 1
        state = sink.state()
        assert state.holds(weights(int(state.version.removeprefix("step-"))))


def test_given_an_update_that_waits_when_it_is_cancelled_then_it_has_ended_and_the_next_one_comes_through() -> None:
    """One of two sinks never joins."""

    async def cancelled(server: ParameterServer, addresses: list[str]) -> None:
        begun = asyncio.Event()
        update = asyncio.create_task(server.awaiting(server.update, "v2", addresses))
        asyncio.get_running_loop().call_later(0.5, begun.set)
        await begun.wait()
        update.cancel()
        with pytest.raises(asyncio.CancelledError) as ended:
            await update
        assert isinstance(ended.value.__cause__, UpdateAbortedError)

    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        server.register("v2", tensors=weights(2))
        began = time.monotonic()
        asyncio.run(cancelled(server, [sink.address, "ipc:///tmp/ckpt-transport-nobody-listens-here"]))
        assert time.monotonic() - began < CONFIG.join_timeout
        assert (sink.state().version, sink.state().tainted) == ("v1", "")
        server.update("v2", [sink.address])
        assert sink.state().holds(weights(2))


def test_given_a_call_that_fails_then_who_awaits_it_gets_its_error() -> None:
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        call = server.awaiting(server.publish, "v2", {"unknown": torch.zeros(3)}, [sink.address])
        with pytest.raises(UpdateAbortedError, match="version 'v2' lacks tensor"):
            asyncio.run(call)


def test_given_a_trainers_leftover_world_then_a_single_source_gives_up_in_time_and_says_the_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody is rank 1: the trainer that had it has ended."""
    leftover = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    for name, value in leftover.items():
        monkeypatch.setenv(name, value)
    config = Config.load(**{**PATIENT, "join_timeout": 2.0})
    with fleet(SinkSpec()) as (sink,), ParameterServer(config) as server:
        server.register("v2", tensors=weights(2))
        began = time.monotonic()
        with pytest.raises(
            (JoinError, UpdateAbortedError), match="WORLD_SIZE=2; for one source pass rank=0, world_size=1"
        ):
            server.update("v2", [sink.address])
        assert time.monotonic() - began < 60
        assert (sink.state().version, sink.state().tainted) == ("v1", "")
