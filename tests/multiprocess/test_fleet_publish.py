"""Given a trainer with a fleet, when it publishes a step, then engines and other sinks serve it, or none does."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ckpt_transport import Config, ParameterServer
from ckpt_transport.control import addresses
from ckpt_transport.errors import UpdateAbortedError
from ckpt_transport_torch import Attachment, attach
from ckpt_transport_vllm import VllmFleet
from tests.fleet import model, weights
from tests.patience import DEADLINE, PATIENT
from tests.vllm_stub import StubServer


@pytest.fixture
def config() -> Config:
    return Config.load(**PATIENT)


@pytest.fixture
def engine(config: Config) -> Iterator[StubServer]:
    with StubServer(config) as server:
        yield server


@pytest.fixture
def module() -> torch.nn.Module:
    return model(1)


@pytest.fixture
def worker(module: torch.nn.Module, config: Config) -> Iterator[Attachment]:
    with attach(module, version="v1", config=config) as attached:
        yield attached


def holds(module: torch.nn.Module, seed: int) -> bool:
    held = module.state_dict()
    return all(torch.equal(held[name], tensor) for name, tensor in weights(seed).items())


def wrapped(seed: int) -> dict[str, torch.Tensor]:
    """Weights as a trainer names them."""
    return {f"module.{name}": tensor for name, tensor in weights(seed).items()}


def test_given_an_engine_and_a_worker_when_a_step_is_published_then_both_serve_it_and_nothing_is_kept(
    engine: StubServer, module: torch.nn.Module, worker: Attachment, config: Config
) -> None:
    with ParameterServer(config) as server, VllmFleet([engine.url], config) as fleet:
        for version, seed in (("two", 2), ("three", 3)):
            done = fleet.publish(server, version, wrapped(seed), other_sinks=[worker.address], mapping="auto")
            assert done is not None
            assert done.problems == ()
            assert (engine.label, worker.version) == (version, version)
            assert holds(engine.model, seed)
            assert holds(module, seed)
            assert not engine.paused
            *told, steps, requests = str(done).splitlines()
            assert told[0].startswith(f"{version} is served by 2 sinks after ")
            assert told[-1].startswith("forward passes were held for at most ")
            assert (steps[:7], requests.split(": ")[0]) == ("steps: ", engine.url)
            assert len(repr(done)) < 4000  # not all of its plan
        fleet.publish(server, "two", weights(2))  # the name is free again
        assert holds(engine.model, 2)
    assert "/pause" in engine.asked
    assert worker.version == "three"


def test_given_a_worker_that_lacks_a_tensor_when_a_step_is_published_then_the_engine_serves_the_old_one(
    engine: StubServer, config: Config
) -> None:
    with (
        attach(model(1, layers=2), version="v1", config=config) as small,
        ParameterServer(config) as server,
        VllmFleet([engine.url], config) as fleet,
        pytest.raises(UpdateAbortedError) as caught,
    ):
        fleet.publish(server, "two", weights(2), other_sinks=[small.address])
    assert caught.value.__notes__ == [f"{engine.url} serves the old version"]
    assert holds(engine.model, 1)
    assert (engine.label, engine.paused) == ("v1", False)


def test_given_two_source_ranks_and_rules_to_be_found_when_they_publish_then_rank_0_drives_the_engine(
    engine: StubServer, module: torch.nn.Module, worker: Attachment, config: Config
) -> None:
    coordinator = Config.load(**PATIENT, coordinator=addresses.new_ipc_address())
    tensors = wrapped(2)  # made here, because threads share the generator of random numbers

    def publish(rank: int) -> bool:
        with (
            ParameterServer(coordinator, rank=rank, world_size=2) as server,
            VllmFleet([engine.url], config) as fleet,
        ):
            done = fleet.publish(server, "two", tensors, replicated=True, mapping="auto", other_sinks=[worker.address])
            return done is not None

    with ThreadPoolExecutor(2) as ranks:
        assert list(ranks.map(publish, (0, 1), timeout=DEADLINE)) == [True, False]
    assert holds(engine.model, 2)
    assert holds(module, 2)


def test_given_staged_versions_when_the_fleet_rolls_back_then_the_worker_goes_back_with_the_engine(
    engine: StubServer, module: torch.nn.Module, worker: Attachment
) -> None:
    staging = Config.load(**PATIENT, commit="staged")
    with ParameterServer(staging) as server, VllmFleet([engine.url], staging) as fleet:
        for version, seed in (("two", 2), ("three", 3)):
            fleet.publish(server, version, weights(seed), other_sinks=[worker.address])
        done = fleet.rollback(server, other_sinks=[worker.address])
    assert done.update.version == "two"
    assert holds(engine.model, 2)
    assert holds(module, 2)
    assert engine.label == "two"
