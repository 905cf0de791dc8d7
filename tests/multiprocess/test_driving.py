"""Given programs that drive an engine from outside, when one dies or two want it, then the engine serves in the end."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ckpt_transport import Config, ParameterServer
from ckpt_transport.control import addresses
from ckpt_transport.errors import EngineError, TaintedError, UpdateAbortedError, UpdateError, UsageError
from ckpt_transport.service.claims import Claims
from ckpt_transport.service.fleet import FleetReport
from ckpt_transport_torch import TorchEngine
from ckpt_transport_vllm import VllmFleet
from tests.fleet import weights
from tests.patience import DEADLINE, PATIENT, SWIFT
from tests.vllm_stub import StubServer, urls


@pytest.fixture
def config() -> Config:
    return Config.load(**PATIENT)


@pytest.fixture
def engine(config: Config) -> Iterator[StubServer]:
    with StubServer(config) as server:
        yield server


@pytest.fixture
def swift() -> Config:
    return Config.load(**SWIFT)


@pytest.fixture
def alert(swift: Config) -> Iterator[StubServer]:
    """An engine that notices soon that a program has died."""
    with StubServer(swift) as server:
        yield server


WEIGHTS = {seed: weights(seed) for seed in (1, 2, 3, 4)}
"""Made beforehand, because threads share the generator of random numbers."""


def update(
    engines: list[StubServer], version: str, seed: int, config: Config, pause: str = "keep"
) -> FleetReport | None:
    with ParameterServer(config) as server, VllmFleet(urls(engines), config, pause) as fleet:
        server.register(version, tensors=WEIGHTS[seed])
        return fleet.update(server, version)


def serves(engine: StubServer, seed: int) -> bool:
    """Whether that is what it serves, to everybody who asks."""
    held = engine.model.state_dict()
    return not engine.paused and all(torch.equal(held[name], tensor) for name, tensor in WEIGHTS[seed].items())


KILLED = """
import os, signal, sys
from ckpt_transport import Config, ParameterServer
from ckpt_transport.spi import Driver
from ckpt_transport_vllm import VllmFleet

pause = Driver.pause

def pause_and_die(driver):
    pause(driver)
    os.kill(os.getpid(), signal.SIGKILL)

Driver.pause = pause_and_die
config = Config.load(heartbeat_interval=0.1, heartbeat_timeout=10)
with ParameterServer(config) as server, VllmFleet(sys.argv[2:], config) as fleet:
    server.register("two", files=[sys.argv[1]])
    fleet.update(server, "two")
"""


def pause_and_die(engine: StubServer, folder: Path) -> None:
    """An update whose program is killed just after it has paused the engine."""
    save_file(WEIGHTS[2], folder / "two.safetensors")
    command = [sys.executable, "-c", KILLED, str(folder / "two.safetensors"), engine.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert engine.paused


def test_given_a_leader_that_was_killed_when_it_had_paused_then_the_next_update_ends_the_pause(
    alert: StubServer, swift: Config, tmp_path: Path
) -> None:
    pause_and_die(alert, tmp_path)
    done = update([alert], "three", 3, swift)
    assert done is not None
    assert done.problems == ()
    assert serves(alert, 3)


def test_given_such_a_leader_and_an_update_that_is_refused_then_the_pause_is_ended_too(
    alert: StubServer, swift: Config, tmp_path: Path
) -> None:
    pause_and_die(alert, tmp_path)
    with ParameterServer(swift) as server, VllmFleet([alert.url], swift, "none") as fleet:
        server.register("spoilt", tensors={"another": torch.zeros(4)})
        with pytest.raises(UpdateAbortedError, match="lacks tensor") as caught:
            fleet.update(server, "spoilt")
    assert caught.value.__notes__ == [f"{alert.url} serves the old version"]
    assert serves(alert, 1)


@pytest.mark.parametrize("pause", ["keep", "wait", "none"])
def test_given_a_server_that_somebody_has_paused_by_hand_then_it_stays_paused_and_that_is_a_problem(
    engine: StubServer, config: Config, pause: str
) -> None:
    engine.post("/pause", {})
    for version in (2, 3):
        done = update([engine], f"v{version}", version, config, pause)
        assert done is not None
        (problem,) = done.problems
        assert problem.startswith(f"{engine.url} is left paused")
        assert "/resume" not in engine.asked
        assert engine.asked.count("/pause") == 1, "the pause by hand has a mode of its own, and keeps it"
    engine.post("/resume", {})
    done = update([engine], "v4", 4, config, pause)
    assert done is not None
    assert done.problems == ()
    assert serves(engine, 4)


def test_given_a_server_that_somebody_resumes_during_an_update_then_it_serves_the_version_and_that_is_a_problem(
    engine: StubServer, config: Config
) -> None:
    def resume(done: int, total: int) -> None:
        engine.post("/resume", {})

    with ParameterServer(config) as server, VllmFleet([engine.url], config) as fleet:
        server.register("v2", tensors=WEIGHTS[2])
        done = fleet.update(server, "v2", resume)
    assert done is not None
    (problem,) = done.problems
    assert problem.startswith(f"{engine.url} was resumed by others")
    assert serves(engine, 2)


def test_given_a_living_leader_then_another_one_waits_for_it_and_both_versions_are_served_in_turn(
    engine: StubServer, config: Config
) -> None:
    claims, began, served = Claims(config), threading.Event(), []
    claim = claims.take({engine.url: engine.attached.address}, "a program")[engine.url]

    def second() -> FleetReport | None:
        began.set()
        done = update([engine], "v2", 2, config)
        served.append("second")
        return done

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(second)
        assert began.wait(DEADLINE)
        with pytest.raises(TimeoutError):
            following.result(2.0)
        assert "/pause" not in engine.asked
        served.append("first")
        claim.release()
        done = following.result(DEADLINE)
    claims.close()
    assert done is not None
    assert done.problems == ()
    assert served == ["first", "second"]
    assert serves(engine, 2)


def test_given_a_leader_that_does_not_end_then_another_one_is_refused_by_its_name_and_nothing_is_touched(
    config: Config,
) -> None:
    impatient = Config.load(**{**PATIENT, "join_timeout": 0.5})
    with StubServer(config) as one, StubServer(config) as two:
        claims = Claims(config)
        last = max((one, two), key=lambda each: each.attached.address)
        other = one if last is two else two
        claims.take({last.url: last.attached.address}, "a program that takes its time")
        with pytest.raises(EngineError, match=rf"{last.url} is driven by a program that takes its time") as caught:
            update([one, two], "v2", 2, impatient)
        assert caught.value.__notes__ == [f"{one.url} was not touched", f"{two.url} was not touched"]
        assert {"/pause", "/resume"}.isdisjoint([*one.asked, *two.asked])
        assert update([other], "v2", 2, config) is not None, "it was claimed, and is not let go"
        claims.close()


def test_given_a_leader_that_shows_no_sign_of_life_then_its_engine_is_anothers_and_it_is_told_so(
    alert: StubServer, swift: Config
) -> None:
    stalled, other = Claims(swift), Claims(swift)
    claim = stalled.take({alert.url: alert.attached.address}, "a stalled program")[alert.url]
    claim.begin("pause")
    assert stalled._mailbox is not None
    stalled._mailbox._heart.stop()
    taken = other.take({alert.url: alert.attached.address}, "another program")[alert.url]
    assert taken.begun == {"pause"}
    with pytest.raises(EngineError, match="is driven by another program by now, and is left to it"):
        claim.check()
    claim.release()
    taken.check()
    taken.end("pause")
    taken.release()
    assert other.take({alert.url: alert.attached.address}, "it again")[alert.url].begun == frozenset()
    stalled.close()
    other.close()


def test_given_updates_that_overlap_then_all_are_made_one_after_the_other_and_the_last_one_is_served(
    engine: StubServer, config: Config
) -> None:
    patient = Config.load(**{**PATIENT, "join_timeout": DEADLINE, "transport": "shm"})
    with ThreadPoolExecutor(3) as pool:
        updates = [pool.submit(update, [engine], f"v{seed}", seed, patient) for seed in (2, 3, 4)]
        for each in updates:
            done = each.result(DEADLINE)
            assert done is not None
            assert done.problems == ()
    assert engine.label == engine.attached.version
    assert serves(engine, int(engine.label.removeprefix("v")))


def test_given_a_server_that_answers_nonsense_when_all_have_committed_then_that_is_a_problem_and_no_failure(
    engine: StubServer, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = engine.post
    monkeypatch.setattr(engine, "post", lambda path, body: ["?"] if path == "/reset_prefix_cache" else post(path, body))
    done = update([engine], "v2", 2, config)
    assert done is not None
    (problem,) = done.problems
    assert problem.startswith(f"{engine.url} has v2 and may not serve it: AttributeError")
    assert engine.attached.version == "v2"


class Uncertain(TorchEngine):
    """At commit it finds that forward passes use something else than what was loaded."""

    sure = True

    def certify(self) -> None:
        super().certify()
        if not self.sure:
            raise UpdateError("forward passes use another tensor")

    def finish(self) -> None:
        super().finish()
        self.sure = False


def test_given_an_update_that_fails_as_it_is_committed_then_each_server_is_labelled_with_what_it_holds(
    config: Config,
) -> None:
    with StubServer(config) as fine, StubServer(config, engine=Uncertain) as failing:
        with pytest.raises(TaintedError, match="forward passes use another tensor") as caught:
            update([fine, failing], "v2", 2, config)
        assert caught.value.__notes__ == [
            f"{fine.url} serves 'v2'",
            f"{failing.url} holds a mix of two versions and is left paused until an update succeeds",
        ]
        assert fine.label == fine.attached.version == "v2"
        assert "/reset_prefix_cache" in fine.asked
        assert serves(fine, 2)
        assert (failing.label, failing.paused) == ("v1", True)


class UncertainOnce(Uncertain):
    """The same, at its first commit only."""

    is_first = True

    def certify(self) -> None:
        try:
            super().certify()
        finally:
            self.sure = True

    def finish(self) -> None:
        super().finish()
        self.sure, self.is_first = not self.is_first, False


def test_given_a_mix_in_a_server_that_was_paused_by_hand_then_the_next_update_leaves_it_paused_too(
    config: Config,
) -> None:
    with StubServer(config, engine=UncertainOnce) as engine:
        engine.post("/pause", {})
        with pytest.raises(TaintedError) as caught:
            update([engine], "v2", 2, config)
        (note,) = caught.value.__notes__
        assert note == f"{engine.url} holds a mix of two versions, and others have paused it: leave it paused"
        done = update([engine], "v3", 3, config)
        assert done is not None
        assert [problem.startswith(f"{engine.url} is left paused") for problem in done.problems] == [True]
        assert "/resume" not in engine.asked


def test_given_two_source_ranks_then_both_call_the_fleet_and_only_rank_0_drives(
    engine: StubServer, config: Config
) -> None:
    settings = {**PATIENT, "coordinator": addresses.new_ipc_address()}
    asked: list[int] = []

    def rank(number: int) -> FleetReport | None:
        mine = Config.load(**settings)
        urls = [engine.url] if number == 0 else ["http://127.0.0.1:9"]
        with ParameterServer(mine, rank=number, world_size=2) as server, VllmFleet(urls, mine) as fleet:
            server.register("v2", tensors=dict(list(WEIGHTS[2].items())[number::2]))
            done = fleet.update(server, "v2")
            asked.append(number)
            return done

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(rank, range(2), timeout=DEADLINE)
    assert first is not None
    assert second is None
    assert first.problems == ()
    assert serves(engine, 2)


def test_given_two_threads_when_both_update_by_one_fleet_then_they_take_turns(
    engine: StubServer, config: Config
) -> None:
    with (
        ParameterServer(config) as server,
        VllmFleet(urls([engine]), config) as fleet,
        ThreadPoolExecutor(2) as threads,
    ):
        for seed in (2, 3):
            server.register(f"v{seed}", tensors=weights(seed))
        updates = [threads.submit(fleet.update, server, f"v{seed}") for seed in (2, 3, 2, 3)]
        assert all(update.result(DEADLINE) for update in updates)
        assert serves(engine, 2) or serves(engine, 3)
    with pytest.raises(UsageError, match="this VllmFleet was closed"):
        fleet.versions()


class Restarting(StubServer):
    """Its workers cannot be asked so many times."""

    refuses = 0

    def post(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/collective_rpc" and self.refuses:
            self.refuses -= 1
            return {"results": [{"error": "it starts again"}]}
        return super().post(path, body)


def test_given_an_engine_that_is_known_and_starts_again_then_it_is_asked_once_more_when_it_serves(
    config: Config,
) -> None:
    with (
        Restarting(config) as engine,
        ParameterServer(config) as server,
        VllmFleet(urls([engine]), config) as fleet,
    ):
        for version in (2, 3):
            server.register(f"v{version}", tensors=WEIGHTS[version])
        fleet.update(server, "v2")
        engine.refuses = 1
        done = fleet.update(server, "v3")
        assert done is not None
        assert done.problems == ()
        assert serves(engine, 3)
        engine.refuses = 2
        with pytest.raises(EngineError, match="it starts again"):
            fleet.update(server, "v2")
        assert serves(engine, 3)
