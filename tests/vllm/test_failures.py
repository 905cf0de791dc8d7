"""Given an update of a real vLLM that fails, then no forward pass runs with a mix and the engine lives."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from ckpt_transport import ParameterServer, ask_version
from ckpt_transport.errors import EngineError, TaintedError, UpdateAbortedError
from ckpt_transport.service.endpoints import client_of
from ckpt_transport_vllm import VllmFleet
from ckpt_transport_vllm.server import VllmServer
from tests.vllm import disturbed, dying
from tests.vllm.servers import (
    PATIENCE,
    PATIENT,
    SMALL_SLOTS,
    TWO_CORES,
    TWO_RANKS,
    Answers,
    Replica,
    Started,
    Traffic,
    pause_and_die,
    swift,
    unanswered,
    update,
    wait_until_stuck,
)

Pair = tuple[Replica, Replica]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def pair(started: Started) -> Iterator[Pair]:
    """Two replicas, of versions 1 and 2, that miss a source soon."""
    soon = {"CKPT_TRANSPORT_HEARTBEAT_TIMEOUT": f"{disturbed.HEARTBEAT_TIMEOUT}"}
    one, two = (started.start("qwen3", seed, environment=soon) for seed in (1, 2))
    yield one.wait(), two.wait()
    started.stop(one, two)


@pytest.fixture(scope="module")
def answers(pair: Pair) -> tuple[Answers, Answers]:
    """What version 1 and version 2 say."""
    one, two = pair
    return one.answers(), two.answers()


def without_one(tensors: Tensors) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


def with_one_more(tensors: Tensors) -> None:
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(4, dtype=torch.bfloat16)


def with_another_shape(tensors: Tensors) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].T.contiguous()


def with_another_dtype(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_one, r"lacks tensor model\.layers\.1\.mlp\.up_proj\.weight"),
        (with_one_more, r"has tensors that vLLM rank 0 .* does not: model\.layers\.2\.mlp\.up_proj\.weight"),
        (with_another_shape, r"model\.layers\.1\.mlp\.up_proj\.weight is BF16 \[128, 256\] .* BF16 \[256, 128\]"),
        (with_another_dtype, r"model\.norm\.weight is F32 \[128\] .* BF16 \[128\]"),
    ],
)
def test_given_a_checkpoint_that_does_not_fit_then_it_is_refused_and_no_request_notices(
    pair: Pair,
    answers: tuple[Answers, Answers],
    tmp_path: Path,
    spoil: Callable[[Tensors], None],
    said: str,
) -> None:
    update(pair, pair[0].checkpoint(1), "one")
    spoilt = tmp_path / "spoilt"
    shutil.copytree(pair[0].checkpoint(2), spoilt)
    tensors = load_file(spoilt / "model.safetensors")
    spoil(tensors)
    save_file(tensors, spoilt / "model.safetensors")
    with Traffic(pair) as traffic, pytest.raises(UpdateAbortedError, match=said) as caught:
        update(pair, spoilt, "spoilt")
    assert all(note.endswith("serves the old version") for note in caught.value.__notes__)
    for replica in pair:
        assert not any(completion.error for completion in traffic.done[replica.url])
        assert replica.answers() == answers[0]
        assert replica.version() == "one"
        assert replica.tainted() == [""]
        assert not replica.is_paused()


class Giving(BaseException):
    """Raised in the middle of an update by whoever leads it, as an interrupt is."""


def give_up(done: int, total: int) -> None:
    """Follow an update's progress as far as its middle."""
    if done > total // 2:
        raise Giving


@pytest.mark.parametrize("settings", [SMALL_SLOTS, {"transport": "shm", "bucket_bytes": "16KiB"}], ids=str)
def test_given_an_update_that_fails_half_way_then_the_engines_are_held_until_one_succeeds(
    pair: Pair, answers: tuple[Answers, Answers], settings: dict[str, str]
) -> None:
    update(pair, pair[0].checkpoint(1), "one")
    config = swift(**settings)

    with ParameterServer(config) as server, VllmFleet([each.url for each in pair], config) as fleet:
        server.register("two", directory=pair[0].checkpoint(2))
        with pytest.raises(Giving) as caught:
            fleet.update(server, "two", give_up)
        assert isinstance(caught.value.__cause__, TaintedError)
        assert len(caught.value.__cause__.sinks) == 2
        notes = "\n".join(caught.value.__notes__)
        for replica in pair:
            assert f"{replica.url} holds a mix of two versions and is left paused" in notes
            assert replica.is_alive()
            assert replica.is_paused()
            assert "failed half-way" in replica.tainted()[0]
        with unanswered(pair[0], 2.0), unanswered(pair[1], 2.0):
            fleet.update(server, "two")
    for replica in pair:
        assert replica.answers() == answers[1]
        assert replica.tainted() == [""]
        assert not replica.is_paused()


def test_given_no_pause_and_an_update_that_fails_half_way_then_forward_passes_wait_until_one_succeeds(
    pair: Pair, answers: tuple[Answers, Answers]
) -> None:
    replica = pair[0]
    update([replica], replica.checkpoint(1), "one")
    config = swift(**SMALL_SLOTS)

    with ParameterServer(config) as server, VllmFleet([replica.url], config, "none") as fleet:
        server.register("two", directory=replica.checkpoint(2))
        with pytest.raises(Giving):
            fleet.update(server, "two", give_up)
        with unanswered(replica, 2.0):
            fleet.update(server, "two")
        assert replica.answers() == answers[1]

        def give_up_when_stuck(done: int, total: int) -> None:
            if done > total // 2:
                wait_until_stuck(replica)
            give_up(done, total)

        server.register("one", directory=replica.checkpoint(1))
        with Traffic([replica], threads=3) as traffic:
            traffic.wait(3)
            with pytest.raises(Giving) as caught:
                fleet.update(server, "one", give_up_when_stuck)
            assert "a forward pass waits there until its sinks are updated: ipc://" in caught.value.__notes__[0]
            fleet.update(server, "one")
            traffic.wait(3)
    assert not any(completion.error for completion in traffic.done[replica.url])
    assert replica.answers() == answers[0]


def test_given_a_mix_that_is_left_paused_and_a_client_that_goes_away_then_the_next_program_still_finds_the_engine(
    pair: Pair, answers: tuple[Answers, Answers]
) -> None:
    """vLLM makes a step without tokens to forget a request, also while it is paused."""
    replica = pair[0]
    update([replica], replica.checkpoint(1), "one")
    config = swift(**SMALL_SLOTS)

    with ParameterServer(config) as server, VllmFleet([replica.url], config) as fleet:
        server.register("two", directory=replica.checkpoint(2))
        with pytest.raises(Giving):
            fleet.update(server, "two", give_up)
    with pytest.raises(httpx.ReadTimeout):
        replica.complete("a question whose client does not wait", timeout=2.0)
    update([replica], replica.checkpoint(2), "two")
    assert replica.answers() == answers[1]


SOURCE = """
import os, signal, sys
from ckpt_transport import Config, ParameterServer
from ckpt_transport_vllm import VllmFleet

def strike(done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)

config = Config.load(heartbeat_interval=0.2, heartbeat_timeout=10.0, transport="gloo", bucket_bytes="64KiB")
with ParameterServer(config) as server, VllmFleet(sys.argv[2:], config) as fleet:
    server.register("two", directory=sys.argv[1])
    fleet.update(server, "two", strike)
"""


def test_given_a_source_that_is_killed_half_way_then_engines_live_and_wait_and_the_next_source_brings_them_back(
    pair: Pair, answers: tuple[Answers, Answers]
) -> None:
    update(pair, pair[0].checkpoint(1), "one")
    sinks = [sink for replica in pair for sink in replica.sinks()]
    command = [sys.executable, "-c", SOURCE, str(pair[0].checkpoint(2)), *(replica.url for replica in pair)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + PATIENCE
    while not all(ask_version(sink, timeout=PATIENCE).tainted for sink in sinks):
        assert time.monotonic() < deadline, "the sinks do not notice that their source is gone"
        time.sleep(0.2)
    with unanswered(pair[0], 2.0), unanswered(pair[1], 2.0):
        assert all(replica.is_alive() for replica in pair)
        update(pair, pair[0].checkpoint(2), "two")
    for replica in pair:
        assert replica.answers() == answers[1]


def test_given_sources_that_are_killed_or_stopped_at_random_then_no_mix_is_served_and_the_next_update_repairs(
    pair: Pair, answers: tuple[Answers, Answers]
) -> None:
    seed = int(os.environ.get("CKPT_TEST_SEED", "18"))
    update(pair, pair[0].checkpoint(1), "one")
    seconds = disturbed.Source(pair, "two", pair[0].checkpoint(2)).ends()
    for number in range(int(os.environ.get("CKPT_TEST_ROUNDS", "3"))):
        update(pair, pair[0].checkpoint(1), "one")
        act, after = disturbed.choose(seed, number, seconds)
        said = disturbed.Source(pair, "two", pair[0].checkpoint(2)).is_disturbed(act, after)
        versions = {"one": answers[0], "two": answers[1]}
        abandoned = act is not signal.SIGSTOP
        serves = [disturbed.settled(replica, versions, abandoned=abandoned) for replica in pair]
        what = f"seed {seed}, round {number}: {act.name} after {after:.2f} s of {seconds:.2f} s: {serves}; {said}"
        print(what)
        assert said or serves == ["two", "two"], what
        assert all(replica.is_alive() for replica in pair), what
        update(pair, pair[0].checkpoint(2), "two")
        assert [replica.answers() for replica in pair] == [answers[1]] * 2, what
        assert not any(replica.is_paused() for replica in pair), what


@pytest.mark.parametrize(("step", "brought"), [("pause", "one"), ("serve", "two")])
def test_given_a_source_that_is_killed_when_it_had_paused_then_the_next_update_ends_the_pause(
    pair: Pair, answers: tuple[Answers, Answers], step: Literal["pause", "serve"], brought: str
) -> None:
    """It is killed when sinks hold nothing yet, or when they have committed: the server is silent, and not tainted."""
    replica = pair[0]
    update([replica], replica.checkpoint(1), "one")
    pause_and_die(replica, step)
    (state,) = disturbed.states(replica)
    assert (state.version, state.tainted) == (brought, "")
    with unanswered(replica, 1.0):
        done = update([replica], replica.checkpoint(2), "two")
    assert done.problems == ()
    assert replica.answers() == answers[1]


@pytest.mark.parametrize("mode", ["keep", "wait"])
def test_given_a_server_that_was_paused_by_hand_then_it_is_updated_and_stays_paused_and_the_report_says_so(
    pair: Pair, answers: tuple[Answers, Answers], mode: str
) -> None:
    replica = pair[0]
    with VllmServer(replica.url) as control:
        control.pause(mode, 30.0)
        (problem,) = update([replica], replica.checkpoint(1), "one").problems
        assert problem.startswith(f"{replica.url} is left paused")
        assert replica.is_paused()
        control.resume()
    assert replica.answers() == answers[0]


def test_given_a_server_that_is_resumed_by_hand_during_an_update_then_no_mix_is_served_and_the_report_says_so(
    pair: Pair, answers: tuple[Answers, Answers]
) -> None:
    replica, config = pair[0], swift(**SMALL_SLOTS)
    update([replica], replica.checkpoint(1), "one")

    def resume(done: int, total: int) -> None:
        with VllmServer(replica.url) as control:
            control.resume()

    with ParameterServer(config) as server, VllmFleet([replica.url], config) as fleet, Traffic([replica]) as traffic:
        server.register("two", directory=replica.checkpoint(2))
        traffic.wait(2)
        done = fleet.update(server, "two", resume)
        traffic.wait(3)
    assert done is not None
    assert [problem.startswith(f"{replica.url} was resumed by others") for problem in done.problems] == [True]
    completions = traffic.done[replica.url]
    assert not any(completion.error for completion in completions)
    assert completions[-1].tokens == answers[1].tokens[0]
    assert replica.answers() == answers[1]


@pytest.mark.parametrize("level", [1, 2])
def test_given_a_server_that_sleeps_then_it_is_updated_and_sleeps_on_and_serves_the_version_when_it_wakes(
    pair: Pair, answers: tuple[Answers, Answers], level: int
) -> None:
    """On CPUs vLLM 0.32.0 holds requests while it sleeps, and gives no memory back."""
    replica = pair[0]
    update([replica], replica.checkpoint(1), "one")
    with client_of(replica.url, PATIENCE) as client:
        client.post("/sleep", params={"level": level}).raise_for_status()
        (problem,) = update([replica], replica.checkpoint(2), "two").problems
        assert problem.startswith(f"{replica.url} is left paused")
        assert client.get("/is_sleeping").json()["is_sleeping"]
        client.post("/wake_up").raise_for_status()
    assert not replica.is_paused()
    assert replica.answers() == answers[1]


def test_given_updates_that_overlap_then_each_is_made_and_the_server_serves_the_one_that_it_names(
    pair: Pair, answers: tuple[Answers, Answers]
) -> None:
    replica = pair[0]
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda seed: update([replica], replica.checkpoint(seed), str(seed)), (1, 2), timeout=PATIENCE)
        assert [each.problems for each in done] == [(), ()]
    assert replica.answers() == answers[int(replica.version()) - 1]


def test_given_an_endpoint_that_cannot_be_updated_then_the_error_says_how_to_start_it(
    pair: Pair, answers: tuple[Answers, Answers], started: Started
) -> None:
    plain = started.start("qwen3", 1, way_in=(), environment={**PATIENT, "VLLM_PLUGINS": "others"}).wait()
    before = pair[0].version()
    with pytest.raises(EngineError, match="have VLLM_PLUGINS name ckpt_transport"):
        update([pair[0], plain], pair[0].checkpoint(2), "three")
    started.stop(plain)
    assert pair[0].version() == before
    with pytest.raises(EngineError, match="is not healthy after"):
        update_quickly([pair[0], plain], pair[0].checkpoint(2))
    assert not pair[0].is_paused()


def update_quickly(replicas: list[Replica], checkpoint: Path) -> None:
    """Without patience for engines that are not there."""
    config = swift()
    with (
        ParameterServer(config) as server,
        VllmFleet([each.url for each in replicas], config, patience=1.0) as fleet,
    ):
        server.register("four", directory=checkpoint)
        fleet.update(server, "four")


@pytest.fixture
def two_ranks(started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Replica]:
    """A replica of which a worker can be ordered to die."""
    for name, value in dying.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    replica = started.start("qwen3", 1, TWO_RANKS, TWO_CORES, kind=Replica).wait()
    yield replica
    started.stop(replica)


@pytest.mark.alone
def test_given_a_worker_that_is_killed_half_way_then_the_others_hold_and_a_new_update_serves(
    pair: Pair, answers: tuple[Answers, Answers], two_ranks: Replica, tmp_path: Path
) -> None:
    """A vLLM that loses a worker ends by itself; the replica beside it must not suffer."""
    survivor = pair[1]
    update([survivor, two_ranks], survivor.checkpoint(1), "one")
    dying.order(tmp_path, two_ranks.workers()[1], bucket=3)
    with pytest.raises((TaintedError, UpdateAbortedError)) as caught:
        update([survivor, two_ranks], survivor.checkpoint(2), "two", **SMALL_SLOTS)
    assert any(two_ranks.url in note for note in caught.value.__notes__)
    assert survivor.is_alive()
    if survivor.tainted() == [""]:
        assert survivor.answers() == answers[0]
    else:
        with unanswered(survivor, 2.0):
            update([survivor], survivor.checkpoint(2), "two")
        assert survivor.answers() == answers[1]
