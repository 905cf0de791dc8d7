"""Given running vLLM servers, when they are updated, then requests go on and nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from ckpt_transport import FleetReport, ParameterServer, TensorShard
from ckpt_transport.errors import TaintedError
from ckpt_transport.memory.segment import PREFIX, SHM
from ckpt_transport_vllm import VllmFleet
from ckpt_transport_vllm.server import VllmServer
from tests.support.vllm_server import NATIVE
from tests.vllm.servers import PATIENCE, PATIENT, Answers, Replica, Started, Traffic, swift, update

Pair = tuple[Replica, Replica]


@pytest.fixture(scope="module")
def answers(pair: Pair) -> tuple[Answers, Answers]:
    """What version 1 and version 2 say."""
    one, two = pair
    return one.answers(), two.answers()


@pytest.mark.parametrize("pause", ["keep", "wait", "none"])
def test_given_two_replicas_that_serve_then_one_plan_updates_both_and_no_request_fails(
    pair: Pair, answers: tuple[Answers, Answers], pause: str
) -> None:
    first, second = answers
    update(pair, pair[0].checkpoint(1), "one")
    with Traffic(pair) as traffic:
        traffic.wait(3)
        done = update(pair, pair[0].checkpoint(2), "two", pause=pause)
        traffic.wait(5)
    assert len(done.update.plan.topology.sinks) == 2
    assert done.problems == ()
    for replica in pair:
        completions = traffic.done[replica.url]
        assert [completion.error for completion in completions if completion.error] == []
        assert completions[0].tokens == first.tokens[0]
        assert completions[-1].tokens == second.tokens[0]
        assert replica.answers() == second
        assert not replica.is_paused()
        assert (done.held[replica.url] > 0) == (pause != "none")


def test_given_a_pause_that_aborts_then_what_ran_ends_early_and_what_comes_later_is_served(
    pair: Pair, answers: tuple[Answers, Answers]
) -> None:
    with Traffic(pair) as traffic:
        traffic.wait(2)
        update(pair, pair[0].checkpoint(1), "one", pause="abort")
        traffic.wait(3)
    for replica in pair:
        assert traffic.done[replica.url][-1].tokens == answers[0].tokens[0]
        assert replica.answers() == answers[0]


@pytest.mark.alone
def test_given_ten_updates_then_neither_memory_nor_shared_memory_grows(
    pair: Pair, answers: tuple[Answers, Answers]
) -> None:
    def memory() -> int:
        return sum(worker.memory_full_info().uss for replica in pair for worker in replica.workers())

    def shared() -> int:
        """Bytes in shared memory that this process and the workers map, or have left there under their names."""
        workers = [worker for replica in pair for worker in replica.workers()]
        processes = [psutil.Process(), *workers]
        mapped = {part.path: part.size for process in processes for part in process.memory_maps()}
        names = [f"{PREFIX}{os.getuid()}-{process.pid}-*" for process in processes]
        left = {str(path): path.stat().st_size for name in names for path in SHM.glob(name)}
        return sum(nbytes for path, nbytes in (mapped | left).items() if path.startswith(f"{SHM}/"))

    def turn(number: int) -> None:
        seed = 1 + number % 2
        update(pair, pair[0].checkpoint(seed), f"turn {number}")

    for number in range(4):
        turn(number)
    before, shared_before = memory(), shared()
    for number in range(10):
        turn(number)
    grown = memory() - before
    size = sum(file.stat().st_size for file in pair[0].checkpoint(1).glob("*.safetensors"))
    assert grown < 10 * size, f"{grown:,} bytes in ten updates of {size:,}"
    assert shared() <= shared_before
    assert pair[0].answers() == answers[1]


def half(tensors: dict[str, torch.Tensor], rank: int) -> dict[str, TensorShard]:
    """Every other half of each tensor's rows, as one of two ranks of a sharded trainer has it."""
    found = {}
    for name, tensor in tensors.items():
        rows = tensor.chunk(2)
        offsets = [rank * len(rows[0]), *[0] * (tensor.dim() - 1)]
        found[name] = TensorShard(rows[rank], tensor.shape, offsets)
    return found


def test_given_two_trainer_ranks_with_half_of_each_tensor_then_the_servers_get_the_whole(
    pair: Pair, answers: tuple[Answers, Answers], tmp_path: Path
) -> None:
    update(pair, pair[0].checkpoint(1), "one")
    tensors = load_file(pair[0].checkpoint(2) / "model.safetensors")
    config = swift(coordinator=f"ipc://{tmp_path}/coordinator")

    def rank(number: int) -> FleetReport | None:
        with (
            ParameterServer(config, rank=number, world_size=2) as server,
            VllmFleet([each.url for each in pair], config) as fleet,
        ):
            server.register("two", tensors=half(tensors, number))
            return fleet.update(server, "two")

    with ThreadPoolExecutor(2) as ranks:
        led, followed = ranks.map(rank, (0, 1), timeout=PATIENCE)
    assert led is not None
    assert followed is None
    assert led.problems == ()
    assert led.update.plan.manifest.owners == (0, 1)
    assert [replica.answers() for replica in pair] == [answers[1]] * 2


class Commands:
    """``ckpt-transport`` as a person calls it, with a state directory of its own."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def __call__(self, *arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "ckpt_transport", *arguments]
        environment = {"PATH": "/usr/bin", "XDG_STATE_HOME": str(self._state), "COLUMNS": "200", **PATIENT}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def ckpt_transport(tmp_path: Path) -> Commands:
    return Commands(tmp_path / "state")


@pytest.fixture
def joiner(started: Started, checkpoints: Path, tmp_path: Path) -> Iterator[Replica]:
    """An engine whose directory holds no weights, so nobody can say what a version must hold."""
    directory = tmp_path / "no weights"
    shutil.copytree(checkpoints / "qwen3-1", directory, ignore=shutil.ignore_patterns("*.safetensors"))
    replica = started.start("qwen3", 1, ("--load-format=dummy",), directory=directory).wait()
    yield replica
    started.stop(replica)


def test_given_an_engine_that_starts_without_weights_then_it_joins_and_the_others_are_not_touched(
    pair: Pair, answers: tuple[Answers, Answers], joiner: Replica, ckpt_transport: Commands, tmp_path: Path
) -> None:
    status, said = ckpt_transport("join", "--endpoint", joiner.url)
    assert status == 1
    assert "no update of vllm engines was made from here" in said

    everybody = [part for replica in pair for part in ("--endpoint", replica.url)]
    checkpoint = str(pair[0].checkpoint(2))
    status, said = ckpt_transport(
        "update", "--engine", "vllm", *everybody, "--checkpoint", checkpoint, "--version", "step-42"
    )
    assert status == 0, said
    for step in ("health", "attach", "pause", "update", "resume", "requests were held for"):
        assert step in said
    assert joiner.answers() != answers[1]

    with Traffic(pair) as traffic:
        status, said = ckpt_transport("join", "--endpoint", joiner.url)
        traffic.wait(3)
    assert status == 0, said
    assert joiner.answers() == answers[1]
    assert joiner.version() == "step-42"
    for replica in pair:
        assert {completion.tokens for completion in traffic.done[replica.url]} == {answers[1].tokens[0]}

    spoilt = tmp_path / "spoilt"
    shutil.copytree(pair[0].checkpoint(1), spoilt)
    tensors = load_file(spoilt / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, spoilt / "model.safetensors")
    with pytest.raises(TaintedError, match=r"nothing for part of model\.layers\.1\.mlp\.gate_up_proj"):
        update([joiner], spoilt, "spoilt")
    assert joiner.is_paused()
    update([joiner], pair[0].checkpoint(2), "step-42")
    assert joiner.answers() == answers[1]

    update([pair[0]], pair[0].checkpoint(1), "step-43")
    status, said = ckpt_transport("join", "--endpoint", joiner.url)
    assert status == 1
    assert "serves 'step-43', and the last update from here brought 'step-42'" in said


def test_given_a_sink_of_vllm_then_the_version_command_asks_it(pair: Pair, ckpt_transport: Commands) -> None:
    update(pair, pair[0].checkpoint(1), "step-7")
    status, said = ckpt_transport("version", "--json", *pair[0].sinks())
    assert status == 0
    (answer,) = json.loads(said).values()
    assert (answer["version"], answer["tainted"]) == ("step-7", "")
    assert answer["label"].startswith("vLLM rank 0")


def test_given_servers_that_have_warmed_up_then_they_say_so_and_take_updates(
    pair: Pair, answers: tuple[Answers, Answers], ckpt_transport: Commands
) -> None:
    endpoints = [argument for replica in pair for argument in ("--endpoint", replica.url)]
    status, said = ckpt_transport("warm-up", "--engine", "vllm", *endpoints)
    assert status == 0, said
    assert said.count("warmed up: recorded the loader") == 2
    update(pair, pair[0].checkpoint(2), "two")
    assert pair[0].answers() == pair[1].answers() == answers[1]


def test_given_a_draft_model_then_it_is_updated_by_itself(started: Started, checkpoints: Path) -> None:
    draft = {"method": "draft_model", "model": str(checkpoints / "qwen3-1"), "num_speculative_tokens": 2}
    replica = started.start("qwen3", 1, ("--speculative-config", json.dumps(draft), *NATIVE), kind=Replica).wait()
    served, tokens = replica.checksums(), replica.tokens()

    def of_the_draft() -> dict[str, str]:
        with VllmServer(replica.url) as server:
            (found,) = server.call_workers("ckpt_transport_checksums", draft=True)
            assert isinstance(found, dict)
            return found

    before = of_the_draft()
    config = swift()
    with ParameterServer(config) as server, VllmFleet([replica.url], config, draft=True) as fleet:
        server.register("draft-2", directory=replica.checkpoint(2))
        fleet.update(server, "draft-2")
    after = of_the_draft()
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before if name.endswith("()"))
    assert (replica.checksums(), replica.tokens()) == (served, tokens)
    update([replica], replica.checkpoint(2), "two")
    assert replica.checksums()[0].items() >= after.items()
    started.stop(replica)
