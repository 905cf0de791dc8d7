"""A SGLang that serves is updated in place, over HTTP, and nobody can tell it from one that was started so."""

from __future__ import annotations

import functools
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckpt_transport import EngineError, ParameterServer, UpdateAbortedError
from ckpt_transport.testing.engine import CHECKS, EngineCheck, Patience
from ckpt_transport_sglang import SglangFleet
from tests.sglang.conftest import Start
from tests.sglang.servers import PATIENCE, Answers, Replica, command, swift, update
from tests.sglang.under_test import ReplicaUnderTest

KEY = "let-me-in"
TOKENS = 480


@pytest.fixture(scope="module")
def pair(start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Replica, Replica]:
    """Two engines that serve versions 1 and 2. The first wants a key of whoever drives it, and another of users."""
    one = start("qwen3", 1, f"--admin-api-key={KEY}")
    two = start("qwen3", 2, "--disable-overlap-schedule", "--sleep-on-idle")
    one.key, one.key_file = KEY, tmp_path_factory.mktemp("key") / "key"
    one.key_file.write_text(KEY)
    one.key_file.chmod(0o600)
    return one.wait(), two.wait()


@pytest.fixture(scope="module")
def fresh(pair: tuple[Replica, Replica]) -> tuple[Answers, Answers]:
    """What engines say that were started with version 1 and with version 2."""
    one, two = pair
    return one.answers(), two.answers()


def test_given_the_command_then_a_serving_engine_is_as_one_that_was_started_so(
    pair: tuple[Replica, Replica], fresh: tuple[Answers, Answers]
) -> None:
    one, _ = pair
    first, second = fresh
    assert first != second
    there = ("--engine=sglang", f"--endpoint={one.url}")
    assert "found to be the same" in command(
        one, "update", f"--checkpoint={one.checkpoint(2)}", "--version=two", *there
    )
    assert one.answers() == second
    assert one.version() == "two"
    said = command(one, "update", f"--checkpoint={one.checkpoint(1)}", "--version=one", "--commit=staged", *there)
    assert "one is served by 1 sink" in said
    assert one.answers() == first
    assert "two is served by 1 sink" in command(one, "rollback", *there)
    assert one.answers() == second
    assert one.version() == "two"
    assert "two" in command(one, "version", *one.sinks())


def test_given_no_key_then_who_drives_is_told_and_the_engine_serves_on(
    pair: tuple[Replica, Replica], fresh: tuple[Answers, Answers]
) -> None:
    one, _ = pair
    before = one.answers()
    key_file, one.key_file = one.key_file, None
    try:
        with pytest.raises(EngineError, match=r"wants an API key.*api_key_file"):
            update([one], one.checkpoint(1), "one")
    finally:
        one.key_file = key_file
    assert one.answers() == before


def test_given_two_engines_then_one_plan_updates_both_and_what_was_computed_before_is_dropped(
    pair: tuple[Replica, Replica], fresh: tuple[Answers, Answers]
) -> None:
    prompt = "what was computed of this prompt is kept for the next request"
    for replica in pair:
        replica.complete(prompt)
        assert replica.generate(prompt)["meta_info"]["cached_tokens"] > 0
    update(pair, pair[0].checkpoint(1), "one")
    for replica in pair:
        assert replica.generate(prompt)["meta_info"]["cached_tokens"] == 0
        assert replica.answers() == fresh[0]
        assert replica.version() == "one"


@pytest.mark.parametrize("pause", ["keep", "retract", "none", "abort"])
def test_given_a_request_under_way_then_it_is_kept_unless_it_is_to_be_aborted(
    pair: tuple[Replica, Replica], fresh: tuple[Answers, Answers], pause: str
) -> None:
    """The prompt is answered by the old version at first, and by the new one in the end; no request is lost."""
    _, two = pair
    seed, before = (1, "two") if two.version() == "two" else (2, two.version() or "default")
    version = {1: "one", 2: "two"}[seed]
    begun, asked = threading.Event(), list[Future[dict[str, Any]]]()
    with ThreadPoolExecutor(1) as asking:

        def ask() -> None:
            asked.append(asking.submit(two.follow, "a long answer", TOKENS, begun.set))
            assert begun.wait(PATIENCE)

        update([two], two.checkpoint(seed), version, pause=pause, happens=ask)
        answer = asked[0].result(PATIENCE)
    told = answer["meta_info"]
    if pause == "abort":
        assert told["finish_reason"]["type"] == "abort"
    else:
        assert len(answer["output_ids"]) == TOKENS
        assert [span["version"] for span in told["weight_versions"]] == [before, version]
    assert not two.is_paused()
    assert two.answers() == fresh[seed - 1]


@pytest.mark.parametrize("pause", ["keep", "retract", "abort"])
def test_given_an_engine_that_was_paused_by_hand_then_it_is_updated_and_stays_paused_and_the_report_says_so(
    pair: tuple[Replica, Replica], fresh: tuple[Answers, Answers], pause: str
) -> None:
    _, two = pair
    with two.driven() as control:
        control.pause(pause, PATIENCE)
        (problem,) = update([two], two.checkpoint(1), "one").problems
        assert problem.startswith(f"{two.url} is left paused, as others have asked")
        assert two.is_paused()
        control.resume()
    assert two.answers() == fresh[0]


def test_given_a_step_of_training_then_what_has_changed_is_exchanged_and_taken_back(
    pair: tuple[Replica, Replica], fresh: tuple[Answers, Answers]
) -> None:
    _, two = pair
    before = load_file(two.checkpoint(1) / "model.safetensors")
    trained = {name: tensor.clone() for name, tensor in before.items()}
    for tensor in trained.values():
        tensor.view(-1).view(torch.int16)[::500] ^= 9
    config = swift(delta="on", commit="staged")
    with ParameterServer(config) as server, SglangFleet([two.url], config) as fleet:
        server.register("before", tensors=before)
        fleet.update(server, "before")
        server.register("trained", tensors=trained)
        done = fleet.update(server, "trained")
        assert done is not None
        assert done.update.delta is not None
        assert done.update.delta.base == "before", done.update.delta.reason
        answers = two.answers()
        fleet.rollback(server)
    assert two.answers() == fresh[0]
    with ParameterServer(swift()) as server, SglangFleet([two.url], swift()) as fleet:
        server.register("all of it", tensors=trained)
        fleet.update(server, "all of it")
    assert two.answers() == answers != fresh[0]


def test_given_a_version_that_does_not_fit_then_its_tensor_is_named_and_the_engine_serves_on(
    pair: tuple[Replica, Replica], tmp_path: Path
) -> None:
    _, two = pair
    before, version = two.answers(), two.version()
    tensors = load_file(two.checkpoint(1) / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    save_file({**tensors, name: tensors[name][:, :-1].contiguous()}, tmp_path / "model.safetensors")
    with pytest.raises(UpdateAbortedError, match=name):
        update([two], tmp_path, "odd")
    assert not two.is_paused()
    assert (two.answers(), two.version()) == (before, version)


def test_given_a_checkpoint_then_an_engine_joins_what_it_says(
    pair: tuple[Replica, Replica], fresh: tuple[Answers, Answers]
) -> None:
    _, two = pair
    at = ("--engine=sglang", f"--endpoint={two.url}")
    command(two, "join", *at, f"--checkpoint={two.checkpoint(2)}", "--version=joined")
    assert two.answers() == fresh[1]
    assert two.version() == "joined"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_given_a_server_then_it_keeps_every_promise_of_an_engine(
    pair: tuple[Replica, Replica], fresh: tuple[Answers, Answers], check: EngineCheck
) -> None:
    check(functools.partial(ReplicaUnderTest, pair[1], fresh), patience=Patience(must=PATIENCE))
