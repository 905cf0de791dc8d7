"""What is said in the first update after its trainer has warmed up: no more than in any later one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from ckpt_transport import Config, ParameterServer, Report, Sink
from ckpt_transport.errors import SupersededError, UpdateAbortedError
from ckpt_transport.planning import plan
from ckpt_transport.replay.record import record
from ckpt_transport.update import messages as m
from ckpt_transport.update.membership import Membership
from ckpt_transport_torch.engine import TorchEngine
from ckpt_transport_torch.loader_engine import LoaderEngine
from tests.fleet import by_name, model, weights
from tests.patience import DEADLINE, PATIENT

LAYERS, WIDTH = 2, 8
STAGED = ["Invite", "Propose", "Run", "Stand", "Apply", "Decide", "Commit"]
IN_PLACE = ["Invite", "Propose", "StandAndRun", "Commit"]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The orders that went to each address, and the plans that were made, by ``plans``."""
    found: dict[str, list[str]] = {"plans": []}
    addressed = Membership.addressed

    def heard(members: Membership, address: str, message: m.FromCoordinator) -> m.FromCoordinator:
        found.setdefault(address, []).append(type(message).__name__)
        return addressed(members, address, message)

    def planned(*arguments: object) -> object:
        found["plans"].append("made")
        return plan(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Membership, "addressed", heard)
    monkeypatch.setattr("ckpt_transport.update.plan_cache.plan", planned)
    return found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def server_for(stack: ExitStack, rank: int = 0, world: int = 1, **settings: object) -> ParameterServer:
    config = Config.load(**{**PATIENT, "commit": "auto", **settings})
    return stack.enter_context(ParameterServer(config, rank=rank, world_size=world))


def sink_for(stack: ExitStack, *, loads: bool = False, **settings: object) -> tuple[Sink, torch.nn.Module]:
    module = model(0, layers=LAYERS, width=WIDTH)
    engine = LoaderEngine(module, by_name(module)) if loads else TorchEngine(module)
    sink = Sink(engine, version="v0", config=Config.load(**{**PATIENT, **settings}))
    stack.callback(sink.close)
    return sink.start(), module


def holds(module: torch.nn.Module, seed: int) -> bool:
    expected = weights(seed, layers=LAYERS, width=WIDTH)
    return all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_given_a_warm_up_then_the_first_update_plans_and_connects_nothing(
    stack: ExitStack, said: dict[str, list[str]], transport: str
) -> None:
    (sink, module), server = sink_for(stack), server_for(stack, transport=transport)
    server.register("v1", tensors=weights(1, layers=LAYERS, width=WIDTH))
    warmed = server.warm_up("v1", [sink.address])
    assert warmed is not None
    assert (warmed.staged, warmed.paused, sink.version, sink.tainted) == (True, {}, "v0", "")
    assert said[sink.address] == ["Invite", "Invite", "Propose", "Open", "Connect", "Run", "Dismiss"]
    assert holds(module, 0)
    said[sink.address].clear()
    report = server.update("v1", [sink.address])
    assert report is not None
    assert said == {"plans": ["made"], sink.address: STAGED}
    assert (report.staged, sink.version) == (True, "v1")
    assert holds(module, 1)


def test_given_an_engine_with_a_loader_then_a_warm_up_records_it_and_the_first_update_does_not(
    stack: ExitStack, said: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[str] = []

    def counted(*arguments: object) -> object:
        recorded.append(said[sink.address][-1])
        return record(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("ckpt_transport.replay.module_loading.record", counted)
    (sink, module), server = sink_for(stack, loads=True), server_for(stack, transport="shm")
    server.register("v1", tensors=weights(1, layers=LAYERS, width=WIDTH))
    server.warm_up("v1", [sink.address])
    assert (recorded, said[sink.address][-1]) == (["Propose"], "Dismiss")
    said[sink.address].clear()
    server.update("v1", [sink.address])
    assert (len(recorded), said[sink.address], said["plans"]) == (1, IN_PLACE, ["made"])
    assert holds(module, 1)


@pytest.mark.parametrize(("commit", "why"), [("auto", "staging_budget"), ("in_place", "")])
def test_given_updates_in_place_then_a_warm_up_ends_before_sinks_hold_and_the_first_update_connects_nothing(
    stack: ExitStack, said: dict[str, list[str]], commit: str, why: str
) -> None:
    (sink, module), server = sink_for(stack, staging_budget=1), server_for(stack, transport="shm", commit=commit)
    server.register("v1", tensors=weights(1, layers=LAYERS, width=WIDTH))
    warmed = server.warm_up("v1", [sink.address])
    assert warmed is not None
    assert not warmed.staged
    assert why in warmed.in_place
    assert said[sink.address] == ["Invite", "Invite", "Propose", "Open", "Connect", "Dismiss"]
    assert (sink.version, holds(module, 0)) == ("v0", True)
    said[sink.address].clear()
    server.update("v1", [sink.address])
    assert said == {"plans": ["made"], sink.address: IN_PLACE}
    assert holds(module, 1)


def test_given_weights_that_were_lent_to_warm_up_then_a_step_that_is_published_afterwards_is_like_any_other(
    stack: ExitStack, said: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version is let go of before, and its tensors change meanwhile, as a trainer's do. What memory gets that comes
    again, it has got."""
    (sink, module), server = sink_for(stack), server_for(stack, transport="shm")
    huge: list[str] = []
    use = "ckpt_transport_shm.private_memory.use_huge_pages"
    monkeypatch.setattr(use, lambda places: huge.append(said[sink.address][-1]))
    tensors = weights(1, layers=LAYERS, width=WIDTH)
    server.lend("as it is", tensors)
    server.warm_up("as it is", [sink.address])
    server.unregister("as it is")
    by_step: list[list[str]] = []
    for seed in (2, 3):
        said[sink.address].clear()
        for name, tensor in weights(seed, layers=LAYERS, width=WIDTH).items():
            tensors[name].copy_(tensor)
        server.publish(f"step-{seed}", tensors, [sink.address])
        assert holds(module, seed)
        by_step.append(list(said[sink.address]))
    assert by_step[0] == by_step[1]
    assert huge == ["Dismiss"]
    assert said["plans"] == ["made"]


def test_given_two_source_ranks_then_both_warm_up_and_nobody_connects_in_the_first_update(
    stack: ExitStack, said: dict[str, list[str]], tmp_path: Path
) -> None:
    settings = {"transport": "shm", "pool": "shared", "coordinator": f"ipc://{tmp_path}/rank-0"}
    sinks = [sink_for(stack) for _ in range(2)]
    addresses = [sink.address for sink, _ in sinks]
    servers = [server_for(stack, rank, 2, **settings) for rank in range(2)]
    for rank, server in enumerate(servers):
        tensors = weights(1, layers=LAYERS, width=WIDTH)
        server.register("v1", tensors=dict(list(tensors.items())[rank::2]))

    def both(call: str) -> list[Report | None]:
        with ThreadPoolExecutor(2) as threads:
            calls = [threads.submit(getattr(server, call), "v1", addresses) for server in servers]
            return [each.result(DEADLINE) for each in calls]

    warmed = both("warm_up")
    assert [type(each) for each in warmed] == [Report, type(None)]
    assert all(sink.version == "v0" and holds(module, 0) for sink, module in sinks)
    said.clear()
    said["plans"] = []
    both("update")
    assert said.pop("plans") == []
    assert [said.pop(address) for address in addresses] == [STAGED, STAGED]
    assert list(said.values()) == [["Propose", "Run", "Commit"]]
    assert all(sink.version == "v1" and holds(module, 1) for sink, module in sinks)


def test_given_a_trainer_that_has_warmed_up_when_another_comes_then_each_brings_its_own(stack: ExitStack) -> None:
    (sink, module), one, other = sink_for(stack), server_for(stack), server_for(stack)
    for seed, server in ((1, one), (2, other)):
        server.register(f"v{seed}", tensors=weights(seed, layers=LAYERS, width=WIDTH))
    one.warm_up("v1", [sink.address])
    other.warm_up("v2", [sink.address])
    assert (sink.version, holds(module, 0)) == ("v0", True)
    one.update("v1", [sink.address])
    assert (sink.version, holds(module, 1)) == ("v1", True)
    one.close()
    other.update("v2", [sink.address])
    assert (sink.version, holds(module, 2)) == ("v2", True)


def test_given_a_staged_version_that_is_dropped_then_the_next_update_plans_and_connects_nothing(
    stack: ExitStack, said: dict[str, list[str]]
) -> None:
    (sink, module), server = sink_for(stack), server_for(stack)
    for seed in (1, 2):
        server.register(f"v{seed}", tensors=weights(seed, layers=LAYERS, width=WIDTH))
    server.stage("v1", [sink.address]).drop()
    assert (sink.version, holds(module, 0)) == ("v0", True)
    assert said[sink.address][-3:] == ["Run", "Keep", "Dismiss"]
    said[sink.address].clear()
    server.update("v1", [sink.address])
    assert said == {"plans": ["made"], sink.address: STAGED}
    staged = server.stage("v2", [sink.address])
    said[sink.address].clear()
    server.update("v1", [sink.address], supersede=True)
    assert said == {"plans": ["made"], sink.address: ["Dismiss", *STAGED]}
    with pytest.raises(SupersededError):
        staged.commit()
    assert holds(module, 1)


def test_given_updates_that_may_be_staged_or_not_then_a_warm_up_stages_and_the_first_update_is_as_it_would_be(
    stack: ExitStack, said: dict[str, list[str]]
) -> None:
    """What it does in a place of its own it does for both."""
    (sink, module), server = sink_for(stack), server_for(stack, commit="shortest")
    server.register("v1", tensors=weights(1, layers=LAYERS, width=WIDTH))
    warmed = server.warm_up("v1", [sink.address])
    assert warmed is not None
    assert warmed.staged
    said[sink.address].clear()
    report = server.update("v1", [sink.address])
    assert report is not None
    assert said[sink.address] == (STAGED if report.staged else IN_PLACE)
    assert (said["plans"], holds(module, 1)) == (["made"], True)


def test_given_a_staged_version_of_before_when_a_trainer_warms_up_then_a_rollback_to_it_is_refused(
    stack: ExitStack,
) -> None:
    """The staging area holds one version."""
    (sink, module), server = sink_for(stack), server_for(stack)
    for seed in (1, 2):
        server.register(f"v{seed}", tensors=weights(seed, layers=LAYERS, width=WIDTH))
    server.update("v1", [sink.address])
    server.warm_up("v2", [sink.address])
    assert holds(module, 1)
    with pytest.raises(UpdateAbortedError, match="has kept none"):
        server.rollback([sink.address])
    assert (sink.version, holds(module, 1)) == ("v1", True)
