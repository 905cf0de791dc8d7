"""A real vLLM serves an adapter that is brought alone, and says what it says when the adapter was merged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckpt_transport import EngineError, rules
from ckpt_transport import Mapping as Rules
from ckpt_transport.service.endpoints import client_of
from ckpt_transport_vllm import ServedAdapter
from tests.support.vllm_server import COMPLETIONS, MODEL
from tests.vllm.servers import PATIENCE, PATIENT, PROMPTS, ForkedReplica, Replica, Started, bring, update

RANK, ALPHA = 4, 32.0
MODULES = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
SETTINGS = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": ALPHA,
    "target_modules": {module.rpartition(".")[2] for module in MODULES},
    "bias": "none",
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


def trained(replica: Replica, seed: int, base_seed: int = 1) -> dict[str, torch.Tensor]:
    """``state_dict()`` of a model of PEFT: the weights beneath, and the factors of its adapter."""
    base = load_file(replica.checkpoint(base_seed) / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in base.items():
        module = name.removesuffix(".weight")
        if not module.endswith(MODULES):
            state[f"base_model.model.{name}"] = tensor
            continue
        state[f"base_model.model.{module}.base_layer.weight"] = tensor
        for factor, shape in (("A", (RANK, tensor.shape[1])), ("B", (tensor.shape[0], RANK))):
            made = torch.randn(shape, generator=generator) / math.sqrt(shape[1] * RANK)
            state[f"base_model.model.{module}.lora_{factor}.default.weight"] = made
    return state


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


def merged(replica: Replica, state: Mapping[str, torch.Tensor], version: str) -> list[dict[str, float]]:
    mapping = Rules.of(rules.Lora(alpha=ALPHA), rules.Unwrap("base_layer"), rules.Strip("base_model.model."))
    bring([replica], state, version, mapping=mapping)
    return logprobs(replica, MODEL)


def test_given_steps_of_an_adapter_then_served_alone_it_answers_as_when_it_is_merged(
    replicas: tuple[Replica, Replica], tmp_path: Path
) -> None:
    serving, merging = replicas
    base = logprobs(serving, MODEL)
    with ServedAdapter([serving.url], "sql", tmp_path) as adapter:
        for step in (1, 2):
            state = trained(serving, seed=step)
            adapter.publish(f"step-{step}", state, SETTINGS)
            alone = logprobs(serving, "sql")
            assert furthest(alone, merged(merging, state, f"step-{step}")) < 0.1
            assert furthest(alone, base) > 0.5
            assert logprobs(serving, MODEL) == base, "the weights beneath are served under the model's name"
            assert [path.name for path in tmp_path.iterdir()] == [f"sql-step-{step}"]
        adapter.withdraw()
    assert not list(tmp_path.iterdir())


def test_given_an_engine_with_an_adapter_when_the_weights_beneath_are_updated_then_it_answers_as_when_both_are_merged(
    replicas: tuple[Replica, Replica], tmp_path: Path
) -> None:
    serving, merging = replicas
    with ServedAdapter([serving.url], "sql", tmp_path) as adapter:
        adapter.publish("step-1", trained(serving, seed=1), SETTINGS)
        before = logprobs(serving, "sql")
        for turn, seed in enumerate((2, 1, 2)):
            update([serving, merging], serving.checkpoint(seed), f"base {seed} of turn {turn}")
            assert logprobs(serving, MODEL) == logprobs(merging, MODEL)
        alone = logprobs(serving, "sql")
        assert furthest(alone, merged(merging, trained(serving, seed=1, base_seed=2), "step-1 on base 2")) < 0.1
        assert furthest(alone, before) > 0.5
        update([serving], serving.checkpoint(1), "base 1 again")
        assert logprobs(serving, "sql") == before
        adapter.withdraw()


def test_given_a_server_that_does_not_load_it_then_none_serves_it_and_the_error_says_why(
    replicas: tuple[Replica, Replica], tmp_path: Path
) -> None:
    """The second server serves no adapters. The first goes on with the version that it had."""
    serving, merging = replicas
    with ServedAdapter([serving.url], "sql", tmp_path) as adapter:
        adapter.publish("step-1", trained(serving, seed=1), SETTINGS)
        before = logprobs(serving, "sql")
        wide = {
            name: tensor.repeat(4, 1) if "lora_A" in name else tensor.repeat(1, 4) if "lora_B" in name else tensor
            for name, tensor in trained(serving, seed=2).items()
        }
        with pytest.raises(EngineError, match=r"'sql' is not served as 'step-2': .*rank 16"):
            adapter.publish("step-2", wide, {**SETTINGS, "r": 16})
        assert logprobs(serving, "sql") == before
        assert adapter.version == "step-1"
        adapter.withdraw()
    with ServedAdapter([serving.url, merging.url], "sql", tmp_path) as adapter:
        with pytest.raises(EngineError, match="start vLLM with --enable-lora, and with VLLM_ALLOW_RUNTIME"):
            adapter.publish("step-1", trained(serving, seed=1), SETTINGS)
        with client_of(serving.url, PATIENCE) as client:
            assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [MODEL]
    assert not list(tmp_path.iterdir())
