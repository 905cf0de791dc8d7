"""What the adapter of SGLang does without one: it holds a loop that never sleeps, and refuses what it does not know."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ckpt_transport import ConfigError, EngineError, UnwritableError
from ckpt_transport_sglang import SglangFleet
from ckpt_transport_sglang.covered import RELEASES, check_covered
from ckpt_transport_sglang.engine import SglangEngine
from ckpt_transport_sglang.frontend import BY_OTHERS, HELD, YES, answer
from ckpt_transport_sglang.pause_owners import PauseOwners
from ckpt_transport_sglang.plugin import CALL
from ckpt_transport_sglang.scheduler_gate import SchedulerGate

PATIENCE = 60.0


class Batch:
    """Requests that are computed together."""

    def is_empty(self) -> bool:
        return False


class Loop:
    """A loop as SGLang's: it asks for requests and runs a batch, unless it is paused, and never sleeps."""

    def __init__(self) -> None:
        self._engine_paused, self._pause_started_at = False, None
        self.running_batch = Batch()
        self.asked = self.ran = 0
        self.ends = False

    def ingest_requests(self) -> None:
        self.asked += 1

    def run_batch(self) -> None:
        self.ran += 1

    def run(self) -> None:
        while not self.ends:
            self.ingest_requests()
            if not self._engine_paused:
                self.run_batch()


@contextmanager
def held() -> Iterator[tuple[Loop, SchedulerGate]]:
    """A loop that is held from its beginning."""
    loop = Loop()
    gate = SchedulerGate(loop)
    gate.hold()
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield loop, gate
    finally:
        loop.ends = True
        gate.resume()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_given_a_loop_that_is_held_then_it_asks_for_nothing_until_it_is_let_go() -> None:
    with held() as (loop, gate):
        gate.advance(0, PATIENCE)
        assert (loop.asked, loop.ran) == (0, 0)
        gate.resume()
        until(lambda: loop.ran > 0)


def test_given_ranks_that_have_run_more_then_a_loop_catches_up_with_them_and_is_held_there() -> None:
    with held() as (loop, gate):
        gate.advance(3, PATIENCE)
        assert (loop.asked, loop.ran) == (3, 3)


def test_given_weights_that_are_a_mix_then_the_loop_answers_and_runs_no_batch_until_an_update_succeeds() -> None:
    with held() as (loop, gate):
        gate.taint("a mix of two versions")
        until(lambda: loop.asked > 10)
        assert loop.ran == 0
        assert loop._engine_paused
        gate.advance(gate.hold(), PATIENCE)
        assert loop.ran == 0
        gate.resume()
        until(lambda: loop.ran > 0)
        assert not loop._engine_paused


def test_given_another_release_then_it_is_refused_by_its_number() -> None:
    RELEASES.check("0.5.23")
    for other in ("0.5.22", "0.6.0", "unknown"):
        with pytest.raises(ConfigError, match=rf"SGLang {other} is not supported.*0\.5\.23"):
            RELEASES.check(other)


class Wrapped(torch.nn.Module):
    """A module as SGLang wraps it for LoRA adapters."""

    def __init__(self, base_layer: torch.nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        if hasattr(base_layer, "weight"):
            self.weight = base_layer.weight


def served(module: torch.nn.Module, quantization: str | None = None, **settings: Any) -> Any:
    """A model as the adapter sees it."""
    found = SimpleNamespace(pp_size=1, dp_size=1, enable_eplb=False, weight_cache_mode="off")
    vars(found).update(settings)
    config = SimpleNamespace(quantization=quantization)
    now = {"absent": False, "keeps_outside": False}
    return SimpleNamespace(module=module, config=config, settings=found, load=lambda tensors: None, **now)


def experts() -> torch.nn.Module:
    """Experts, none of whose parameters is called ``weight``."""
    module = torch.nn.Module()
    module.register_parameter("w13_weight", torch.nn.Parameter(torch.zeros(1)))
    return module


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (served(torch.nn.Linear(1, 1, bias=False), "fp8"), "quantization 'fp8' is not covered"),
        (served(torch.nn.Linear(1, 1, bias=False), pp_size=2), "pp_size=2, and 1 is what is covered"),
        (served(torch.nn.Linear(1, 1, bias=False), dp_size=2), "dp_size=2, and 1 is what is covered"),
        (served(torch.nn.Linear(1, 1, bias=False), enable_lmcache=True), "enable_lmcache=True, and False is what"),
        (served(torch.nn.Linear(1, 1, bias=False), offload_group_size=4), "offload_group_size=4, and -1 is what"),
        (served(torch.nn.Sequential(Wrapped(experts()))), r"0\.base_layer\.w13_weight is wrapped for LoRA adapters"),
    ],
    ids=["fp8", "pipeline parallel", "data parallel", "a store outside", "offloaded", "experts with adapters"],
)
def test_given_an_engine_that_a_loader_would_leave_wrong_then_it_is_refused_by_the_name_of_what_is_in_the_way(
    model: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.5.23")
    check_covered(served(torch.nn.Sequential(Wrapped(torch.nn.Linear(1, 1, bias=False)))))
    with pytest.raises(ConfigError, match=said):
        check_covered(model)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ("absent", "given back the memory of its weights; POST /resume_memory_occupation"),
        ("keeps_outside", "in a store of HiCache, which no flush empties.* DELETE /hicache/storage-backend"),
    ],
)
def test_given_an_engine_that_an_update_would_leave_wrong_just_now_then_it_is_refused(now: str, said: str) -> None:
    gate = SchedulerGate(Loop())
    model = served(torch.nn.Linear(1, 1))
    engine = SglangEngine(model, gate, "an engine", "its rank")
    setattr(model, now, True)
    with pytest.raises(UnwritableError, match=said):
        engine.begin()
    assert not gate.updating


@pytest.mark.parametrize("said", ["", "its caches could not be dropped"])
def test_given_a_rank_that_could_not_do_its_part_then_requests_stay_held_and_nothing_is_named(said: str) -> None:
    """Where all could, the name is the new one; nobody has asked for the end of the pause."""
    named: list[str] = []
    manager = SimpleNamespace(is_pause=False, _update_weight_version_if_provided=named.append)
    PauseOwners.of(manager)
    manager.is_pause = True

    async def ask_ranks(*_: Any) -> tuple[bool, str, Any, Any]:
        return True, json.dumps([{"error": ""}, {"error": said}]), None, None

    async def not_called() -> None:
        raise AssertionError("requests were let go")

    manager.continue_generation = not_called
    asked = {"call": "serve", "version": "two", "resume": YES if said else ""}
    action = SimpleNamespace(action=CALL + json.dumps(asked))
    done, answers, *_ = asyncio.run(answer(ask_ranks, manager, action, None))
    assert done
    assert [each["error"] for each in json.loads(answers)] == ["", said]
    assert [(each[HELD], each[BY_OTHERS]) for each in json.loads(answers)] == [(YES, "")] * 2
    assert named == ([] if said else ["two"])


def test_given_what_the_fleet_does_not_do_then_it_is_refused_before_anybody_is_asked() -> None:
    with pytest.raises(ConfigError, match="draft models of SGLang are not updated"):
        SglangFleet(["http://127.0.0.1:1"], draft=True)
    with pytest.raises(ConfigError, match="keep, retract, abort, none"):
        SglangFleet(["http://127.0.0.1:1"], pause="wait")


def test_given_nobody_there_then_the_endpoint_is_named() -> None:
    with (
        SglangFleet(["http://127.0.0.1:1"], patience=0.0) as fleet,
        pytest.raises(EngineError, match=r"127\.0\.0\.1:1"),
    ):
        fleet.sinks()
