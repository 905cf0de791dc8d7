"""A stream engine hands versions to whoever iterates over them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from threading import Event
from typing import Any

import pytest
import torch

from ckpt_transport import (
    Config,
    ParameterServer,
    Report,
    Sink,
    StreamEngine,
    TaintedError,
    TransferTimeout,
    UpdateAbortedError,
    UpdateError,
    UsageError,
)
from tests.patience import with_enough_seconds

SECONDS = 60.0
TENSORS = {f"layers.{number}": torch.full((256, 256), float(number)) for number in range(8)}
SETTINGS: dict[str, Any] = {"bucket_bytes": 1 << 19, "memory_budget": 4 << 20}


@pytest.fixture
def engine() -> StreamEngine:
    return StreamEngine("rollout 0")


@pytest.fixture
def sink(engine: StreamEngine) -> Iterator[Sink]:
    with closing(Sink(engine, version="v0", config=Config.load(**SETTINGS)).start()) as sink:
        yield sink


@pytest.fixture
def server() -> Iterator[ParameterServer]:
    with ParameterServer(Config.load(**SETTINGS), rank=0, world_size=1) as server:
        yield server


@pytest.fixture
def publishing(server: ParameterServer, sink: Sink) -> Iterator[Future[Report | None]]:
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(server.publish, "v1", TENSORS, [sink])


def test_given_a_receiver_then_it_gets_every_tensor_of_each_version(
    engine: StreamEngine, sink: Sink, server: ParameterServer
) -> None:
    with ThreadPoolExecutor(1) as threads:
        for factor in (1, 2, 3):
            version = {name: tensor * factor for name, tensor in TENSORS.items()}
            updated = threads.submit(server.publish, f"v{factor}", version, [sink])
            received = {name: tensor.clone() for name, tensor in engine.receive(SECONDS)}
            assert updated.result(SECONDS) is not None
            assert received.keys() == version.keys()
            assert all(torch.equal(received[name], tensor) for name, tensor in version.items())
            assert sink.version == f"v{factor}"


def test_given_no_receiver_then_the_update_fails_and_changes_nothing(
    engine: StreamEngine, server: ParameterServer
) -> None:
    def is_named(seconds: float) -> bool:
        """Unless the update has not come as far as that in time."""
        swift = Config.load(join_timeout=seconds)
        with closing(Sink(engine, version="v0", config=swift).start()) as sink:
            with pytest.raises(UpdateAbortedError) as failed:
                server.publish("v1", TENSORS, [sink])
            assert (sink.version, sink.tainted) == ("v0", "")
        return "nobody receives from rollout 0" in str(failed.value)

    with_enough_seconds(is_named)


def test_given_a_receiver_that_leaves_in_the_middle_then_the_update_fails_and_the_next_one_mends_it(
    engine: StreamEngine, sink: Sink, server: ParameterServer, publishing: Future[Report | None]
) -> None:
    received = engine.receive(SECONDS)
    next(received)
    received.close()
    with pytest.raises(TaintedError, match="who received from rollout 0 has left before the end"):
        publishing.result(SECONDS)
    assert sink.tainted
    with ThreadPoolExecutor(1) as threads:
        updated = threads.submit(server.publish, "v2", TENSORS, [sink])
        assert len(list(engine.receive(SECONDS))) == len(TENSORS)
        assert updated.result(SECONDS) is not None
    assert (sink.version, sink.tainted) == ("v2", "")


def test_given_an_update_that_fails_in_the_middle_then_the_receiver_hears_it(
    engine: StreamEngine, publishing: Future[Report | None]
) -> None:
    received = engine.receive(SECONDS)
    next(received)
    engine.give_up("the trainer is gone")
    with pytest.raises(UpdateError, match="rollout 0 was given a part of a version: the trainer is gone"):
        list(received)
    with pytest.raises(TaintedError):
        publishing.result(SECONDS)


def test_given_an_update_that_fails_before_a_tensor_then_the_receiver_hears_it_at_once(
    engine: StreamEngine, sink: Sink, server: ParameterServer
) -> None:
    waits = Event()

    def refuse() -> None:
        waits.set()
        raise RuntimeError("not now")

    with ThreadPoolExecutor(1) as threads:
        updated = threads.submit(server.publish, "v1", TENSORS, [sink], None, refuse)
        with pytest.raises(UpdateError, match="the update of rollout 0 was given up"):
            list(engine.receive(SECONDS))
        assert waits.is_set()
        with pytest.raises(UpdateAbortedError, match="not now"):
            updated.result(SECONDS)


def test_given_no_source_then_a_receiver_waits_no_longer_than_it_says(engine: StreamEngine) -> None:
    with pytest.raises(TransferTimeout, match=r"no tensors came to rollout 0 within 0\.1 s"):
        list(engine.receive(0.1))


def test_given_a_receiver_then_a_second_one_is_refused(engine: StreamEngine, publishing: Future[Report | None]) -> None:
    received = engine.receive(SECONDS)
    next(received)
    with pytest.raises(UsageError, match="another iterator receives from rollout 0"):
        next(engine.receive(SECONDS))
    assert len(list(received)) == len(TENSORS) - 1
    assert publishing.result(SECONDS) is not None
