"""Given a trainer with a fleet, when it stages a version, then engines serve it, named, from the commit on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ckpt_transport import Config, FleetReport, ParameterServer
from ckpt_transport.control import addresses
from ckpt_transport.errors import EngineError, SupersededError, UpdateAbortedError, UsageError
from ckpt_transport_torch import attach
from ckpt_transport_vllm import VllmFleet
from tests.fleet import model, weights
from tests.patience import DEADLINE, PATIENT
from tests.vllm_stub import StubServer, urls

WEIGHTS = {seed: weights(seed) for seed in (1, 2, 3)}
"""Made beforehand, because threads share the generator of random numbers."""


@pytest.fixture
def config() -> Config:
    return Config.load(**PATIENT)


@pytest.fixture
def engines(config: Config) -> Iterator[list[StubServer]]:
    with StubServer(config) as one, StubServer(config) as two:
        yield [one, two]


@pytest.fixture
def server(config: Config) -> Iterator[ParameterServer]:
    with ParameterServer(config) as server:
        for seed in (2, 3):
            server.register(f"v{seed}", tensors=WEIGHTS[seed])
        yield server


@pytest.fixture
def fleet(engines: list[StubServer], config: Config, server: ParameterServer) -> Iterator[VllmFleet]:
    with VllmFleet(urls(engines), config) as fleet:
        yield fleet


def holds(module: torch.nn.Module, seed: int) -> bool:
    held = module.state_dict()
    return all(torch.equal(held[name], tensor) for name, tensor in WEIGHTS[seed].items())


def all_serve(engines: list[StubServer], seed: int) -> bool:
    return all(holds(each.model, seed) and each.label == f"v{seed}" and not each.paused for each in engines)


def untouched(engines: list[StubServer]) -> bool:
    """Whether no request was held, no cache dropped and nothing named."""
    return all(
        {"/pause", "/resume", "/reset_prefix_cache", "/update_weight_version"}.isdisjoint(e.asked) for e in engines
    )


def test_given_a_staged_version_when_it_is_committed_then_engines_are_paused_name_it_and_serve_it(
    engines: list[StubServer], server: ParameterServer, fleet: VllmFleet, config: Config
) -> None:
    module = model(1)
    with attach(module, version="v1", config=config) as worker:
        job = fleet.stage(server, "v2", other_sinks=[worker.address])
        server.unregister("v2")
        assert all_serve(engines, 1)
        assert untouched(engines)
        paused: list[bool] = []
        done = job.commit(lambda: paused.extend(each.paused for each in engines))
        assert done is not None
        assert (done.update.version, done.update.staged, done.problems) == ("v2", True, ())
        assert set(done.held) == set(urls(engines))
        assert list(done.steps)[-4:] == ["stage", "pause", "update", "resume"]
        assert paused == [True, True]
        assert all_serve(engines, 2)
        assert holds(module, 2)
        for engine in engines:
            assert "/reset_prefix_cache" in engine.asked
        fleet.update(server, "v3")
        assert all_serve(engines, 3)


def test_given_a_staged_version_when_it_is_dropped_then_no_engine_is_touched_and_the_next_is_taken(
    engines: list[StubServer], server: ParameterServer, fleet: VllmFleet, config: Config
) -> None:
    fleet.stage(server, "v2").drop()
    with pytest.raises(ValueError, match="diverged"), fleet.stage(server, "v2") as job:
        raise ValueError("diverged")
    with pytest.raises(UpdateAbortedError, match="'v2' was dropped"):
        job.commit()
    assert all_serve(engines, 1)
    assert untouched(engines)
    with ParameterServer(config) as others, VllmFleet(urls(engines), config) as another:
        others.register("v3", tensors=WEIGHTS[3])
        another.update(others, "v3")
    assert all_serve(engines, 3)


def test_given_a_staged_version_when_another_program_would_drive_its_engines_then_it_hears_who_does(
    engines: list[StubServer], server: ParameterServer, fleet: VllmFleet
) -> None:
    impatient = Config.load(**{**PATIENT, "join_timeout": 0.5})
    job = fleet.stage(server, "v2")
    with ParameterServer(impatient) as others, VllmFleet(urls(engines), impatient) as another:
        others.register("v3", tensors=WEIGHTS[3])
        with pytest.raises(EngineError, match="is driven by the update to 'v2' by process"):
            another.update(others, "v3")
    job.commit()
    assert all_serve(engines, 2)


def test_given_a_staged_version_when_its_thread_updates_then_that_is_refused_or_supersedes_it(
    engines: list[StubServer], server: ParameterServer, fleet: VllmFleet
) -> None:
    job = fleet.stage(server, "v2")
    with pytest.raises(UsageError, match=r"would wait for stage\('v2'\).*commit it or drop it before"):
        fleet.update(server, "v3")
    newer = fleet.stage(server, "v3", supersede=True)
    with pytest.raises(SupersededError):
        job.commit()
    assert all_serve(engines, 1)
    newer.commit()
    assert all_serve(engines, 3)


def test_given_a_staged_version_when_another_thread_updates_then_it_waits_for_the_commit(
    engines: list[StubServer], server: ParameterServer, fleet: VllmFleet
) -> None:
    job = fleet.stage(server, "v2")
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(fleet.update, server, "v3")
        with pytest.raises(TimeoutError):
            following.result(0.5)
        job.commit()
        following.result(DEADLINE)
    assert all_serve(engines, 3)


def test_given_an_engine_that_is_paused_by_hand_meanwhile_when_it_is_committed_then_it_stays_so_and_is_named(
    engines: list[StubServer], server: ParameterServer, fleet: VllmFleet
) -> None:
    first, second = engines
    job = fleet.stage(server, "v2")
    first.post("/pause", {})
    done = job.commit()
    assert done is not None
    (problem,) = done.problems
    assert problem.startswith(f"{first.url} is left paused")
    assert first.paused
    assert "/resume" not in first.asked
    assert holds(first.model, 2)
    assert all_serve([second], 2)


def test_given_an_engine_that_dies_meanwhile_when_it_is_committed_then_the_others_serve_the_old_version(
    engines: list[StubServer], server: ParameterServer, config: Config
) -> None:
    with StubServer(config) as dead, VllmFleet(urls([*engines, dead]), config) as fleet:
        job = fleet.stage(server, "v2")
        dead.close()
        with pytest.raises(UpdateAbortedError) as caught:
            job.commit()
    *alive, last = caught.value.__notes__
    assert alive == [f"{each.url} serves the old version" for each in engines]
    assert last.startswith(f"{dead.url} could not be brought back to service")
    assert all_serve(engines, 1)


def test_given_a_version_that_lacks_a_tensor_when_it_is_staged_then_engines_serve_on_and_are_free(
    engines: list[StubServer], server: ParameterServer, fleet: VllmFleet
) -> None:
    server.register("spoilt", tensors={"another": torch.zeros(4)})
    with pytest.raises(UpdateAbortedError, match="lacks tensor") as caught:
        fleet.stage(server, "spoilt")
    assert caught.value.__notes__ == [f"{each.url} serves the old version" for each in engines]
    fleet.update(server, "v2")
    assert all_serve(engines, 2)


def test_given_a_fleet_that_is_closed_before_the_commit_then_engines_serve_on_and_are_free(
    engines: list[StubServer], server: ParameterServer, config: Config
) -> None:
    with VllmFleet(urls(engines), config) as fleet:
        job = fleet.stage(server, "v2")
    with pytest.raises(UsageError, match="was closed"):
        job.commit()
    with VllmFleet(urls(engines), config) as fleet:
        fleet.update(server, "v3")
    assert all_serve(engines, 3)


def test_given_two_source_ranks_when_both_commit_then_rank_0_drives_the_engines(
    engines: list[StubServer], config: Config
) -> None:
    coordinator = Config.load(**PATIENT, coordinator=addresses.new_ipc_address())

    def bring(rank: int) -> bool:
        with (
            ParameterServer(coordinator, rank=rank, world_size=2) as server,
            VllmFleet(urls(engines), config) as fleet,
        ):
            for seed in (2, 3):
                server.register(f"v{seed}", tensors=WEIGHTS[seed], replicated=True)
            reports = [fleet.stage(server, f"v{seed}").commit() for seed in (2, 3)]
            return None not in reports

    with ThreadPoolExecutor(2) as ranks:
        assert list(ranks.map(bring, (0, 1), timeout=DEADLINE)) == [True, False]
    assert all_serve(engines, 3)


def test_given_an_event_loop_when_it_stages_then_commit_and_drop_are_awaited(
    engines: list[StubServer], server: ParameterServer, fleet: VllmFleet
) -> None:
    async def train() -> FleetReport | None:
        async with await fleet.staging(server, "v2"):
            pass
        assert all_serve(engines, 1)
        job = await fleet.staging(server, "v3")
        return await job.commit()

    done = asyncio.run(train())
    assert done is not None
    assert done.problems == ()
    assert all_serve(engines, 3)
