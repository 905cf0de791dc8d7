"""Real vLLMs, by one option, serve an adapter alone or merged, and say what PEFT's own merge says."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_transport import EngineError, ParameterServer
from ckpt_transport.service.endpoints import client_of
from ckpt_transport_vllm import Adapter, ServedAs, VllmFleet
from tests.support.vllm_server import COMPLETIONS, MODEL
from tests.vllm.servers import PATIENCE, PATIENT, PROMPTS, ForkedReplica, Replica, Started, swift, update

peft = pytest.importorskip("peft", reason="peft is not installed: make venv-vllm installs it")
transformers = pytest.importorskip("transformers", reason="peft needs it")

SETTINGS: Mapping[str, Any] = {
    "r": 4,
    "lora_alpha": 32,
    "target_modules": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
}
SERVES_ADAPTERS = ("--enable-lora", "--max-lora-rank=8")
MAY_CHANGE = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", **PATIENT}


@pytest.fixture(scope="module")
def replicas(started: Started) -> Iterator[tuple[Replica, Replica]]:
    """One that serves adapters, and one into whose weights they are merged."""
    serving = started.start("qwen3", 1, SERVES_ADAPTERS, MAY_CHANGE, kind=ForkedReplica)
    merging = started.start("qwen3", 1)
    yield serving.wait(), merging.wait()
    started.stop(serving, merging)


def trained(replica: Replica, seed: int, base_seed: int = 1, **settings: Any) -> Any:
    """A model of PEFT whose adapter has been trained for a while."""
    beneath = transformers.AutoModelForCausalLM.from_pretrained(replica.checkpoint(base_seed), dtype="auto")
    model = peft.get_peft_model(beneath, peft.LoraConfig(**{**SETTINGS, **settings}))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            made = torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[1] * SETTINGS["r"])
            parameter.data.copy_(made)
    return model


def merged_by_peft(replica: Replica, model: Any) -> list[dict[str, float]]:
    """What PEFT's merge says, in FP32 and without an engine: for each prompt, all next tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(replica.checkpoint(1))
    merged = copy.deepcopy(model).float().merge_and_unload().eval()
    found = []
    for prompt in PROMPTS:
        with torch.no_grad():
            logits = merged(tokenizer(prompt, return_tensors="pt").input_ids).logits[0, -1]
        found.append({f"token_id:{n}": float(each) for n, each in enumerate(logits.log_softmax(-1))})
    return found


def logprobs(replica: Replica, model: str) -> list[dict[str, float]]:
    """For each prompt, the likeliest next tokens by their numbers, and the logarithms of their probabilities."""
    asked = {"model": model, "max_tokens": 1, "temperature": 0.0, "logprobs": 5, "return_tokens_as_token_ids": True}
    found: list[dict[str, float]] = []
    with client_of(replica.url, PATIENCE) as client:
        for prompt in PROMPTS:
            answer = client.post(COMPLETIONS, json={**asked, "prompt": prompt})
            answer.raise_for_status()
            found.append(answer.json()["choices"][0]["logprobs"]["top_logprobs"][0])
    return found


def furthest(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    """How far two servers are apart, over the tokens that both name; infinitely, where they name different ones."""
    pairs = [(one[token], two[token]) for one, two in zip(ours, theirs, strict=True) for token in one.keys() & two]
    if len(pairs) < 3 * len(ours):
        return math.inf
    return max(abs(one - two) for one, two in pairs)


Publish = Callable[..., object]


@contextmanager
def publishing(*replicas: Replica) -> Iterator[tuple[Publish, VllmFleet]]:
    """What a trainer calls at each step: whether its adapter is merged, or served alone, is one argument."""
    config = swift()
    with (
        ParameterServer(config, rank=0, world_size=1) as server,
        VllmFleet([replica.url for replica in replicas], config) as fleet,
    ):

        def publish(version: str, model: Any, served: ServedAs | None = None) -> object:
            adapter = Adapter(model.peft_config, served=served)
            return fleet.publish(server, version, model.state_dict(), adapter=adapter)

        yield publish, fleet


def test_given_steps_of_an_adapter_then_merged_or_served_alone_engines_answer_as_after_the_merge_of_peft(
    replicas: tuple[Replica, Replica], tmp_path: Path
) -> None:
    serving, merging = replicas
    base, sql = logprobs(serving, MODEL), ServedAs("sql", tmp_path)
    with publishing(serving) as (bring_alone, fleet), publishing(merging) as (merge, _):
        for step in (1, 2):
            model = trained(serving, seed=step)
            assert bring_alone(f"step-{step}", model, sql) is None
            assert merge(f"step-{step}", model) is not None
            alone, expected = logprobs(serving, "sql"), merged_by_peft(serving, model)
            assert furthest(alone, expected) < 0.2
            assert furthest(logprobs(merging, MODEL), expected) < 0.2
            assert furthest(alone, base) > 0.5
            assert logprobs(serving, MODEL) == base, "the weights beneath are served under the model's name"
            assert [path.name for path in tmp_path.iterdir()] == [f"sql-step-{step}"]
        fleet.withdraw(sql)
    assert not list(tmp_path.iterdir())


def test_given_an_engine_with_an_adapter_when_the_weights_beneath_are_updated_then_it_answers_as_when_both_are_merged(
    replicas: tuple[Replica, Replica], tmp_path: Path
) -> None:
    serving, merging = replicas
    sql = ServedAs("sql", tmp_path)
    with publishing(serving) as (bring_alone, fleet):
        bring_alone("step-1", trained(serving, seed=1), sql)
        before = logprobs(serving, "sql")
        for turn, seed in enumerate((2, 1, 2)):
            update([serving, merging], serving.checkpoint(seed), f"base {seed} of turn {turn}")
            assert logprobs(serving, MODEL) == logprobs(merging, MODEL)
        alone = logprobs(serving, "sql")
        assert furthest(alone, merged_by_peft(serving, trained(serving, seed=1, base_seed=2))) < 0.2
        assert furthest(alone, before) > 0.5
        update([serving], serving.checkpoint(1), "base 1 again")
        assert logprobs(serving, "sql") == before
        fleet.withdraw(sql)


def test_given_a_server_that_does_not_load_it_then_none_serves_it_and_the_error_says_why(
    replicas: tuple[Replica, Replica], tmp_path: Path
) -> None:
    """The second server serves no adapters. The first goes on with the version that it had."""
    serving, merging = replicas
    sql = ServedAs("sql", tmp_path)
    with publishing(serving) as (bring_alone, fleet):
        bring_alone("step-1", trained(serving, seed=1), sql)
        before = logprobs(serving, "sql")
        with pytest.raises(EngineError, match=r"'sql' is not served as 'step-2': .*rank 16"):
            bring_alone("step-2", trained(serving, seed=2, r=16), sql)
        assert logprobs(serving, "sql") == before
        assert [path.name for path in tmp_path.iterdir()] == ["sql-step-1"]
        fleet.withdraw(sql)
    with publishing(serving, merging) as (bring_alone, _):
        with pytest.raises(EngineError, match="start vLLM with --enable-lora, and with VLLM_ALLOW_RUNTIME"):
            bring_alone("step-1", trained(serving, seed=1), sql)
        with client_of(serving.url, PATIENCE) as client:
            assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [MODEL]
    assert not list(tmp_path.iterdir())
