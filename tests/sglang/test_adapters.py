"""A SGLang that serves a LoRA adapter is updated beneath it, and says what it says when both are merged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.sglang.conftest import Start
from tests.sglang.servers import PATIENCE, PROMPTS, Replica, update
from tests.support.sglang_server import GENERATE, greedy

RANK, ALPHA = 4, 32.0
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SERVES_ADAPTERS = (
    "--enable-lora",
    "--max-lora-rank=8",
    "--lora-backend=torch_native",
    "--lora-target-modules",
    *MODULES,
)
PREFIX, ADAPTER = "base_model.model.", "sql"
SETTINGS = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": RANK,
    "lora_alpha": ALPHA,
    "target_modules": MODULES,
    "bias": "none",
}
Likely = dict[int, float]
"""The likeliest next tokens, and the logarithms of their probabilities."""


@pytest.fixture(scope="module")
def factors(checkpoints: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Of the adapter: A and B, by the name of the weight to which they are added."""
    generator = torch.Generator().manual_seed(3)
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, tensor in load_file(checkpoints / "qwen3-1" / "model.safetensors").items():
        if name.removesuffix(".weight").endswith(MODULES):
            shapes = ((RANK, tensor.shape[1]), (tensor.shape[0], RANK))
            one, other = (torch.randn(shape, generator=generator) / math.sqrt(shape[1] * RANK) for shape in shapes)
            found[name] = one, other
    return found


@pytest.fixture(scope="module")
def replica(
    start: Start, factors: dict[str, tuple[torch.Tensor, torch.Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> Replica:
    """An engine that serves version 1, and the adapter beside it."""
    folder = tmp_path_factory.mktemp(ADAPTER)
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS))
    kept = {
        f"{PREFIX}{name.removesuffix('.weight')}.lora_{factor}.weight": tensor
        for name, pair in factors.items()
        for factor, tensor in zip("AB", pair, strict=True)
    }
    save_file(kept, folder / "adapter_model.safetensors")
    started = start("qwen3", 1, *SERVES_ADAPTERS).wait()
    started.ask("POST", "/load_lora_adapter", {"lora_name": ADAPTER, "lora_path": str(folder)}, PATIENCE)
    return started


def likely(replica: Replica, **asked: Any) -> list[Likely]:
    """What it says to each prompt."""
    found: list[Likely] = []
    for prompt in PROMPTS:
        body = {**greedy(prompt, 1), "return_logprob": True, "top_logprobs_num": 5, **asked}
        (tokens,) = replica.ask("POST", GENERATE, body, PATIENCE)["meta_info"]["output_top_logprobs"]
        found.append({token: logprob for logprob, token, _ in tokens})
    return found


def furthest(ours: list[Likely], theirs: list[Likely]) -> float:
    """How far two answers are apart, over the tokens that both name; infinitely, where they name different ones."""
    pairs = [(one[token], two[token]) for one, two in zip(ours, theirs, strict=True) for token in one.keys() & two]
    if len(pairs) < 3 * len(ours):
        return math.inf
    return max(abs(one - two) for one, two in pairs)


def test_given_an_engine_with_an_adapter_when_the_weights_beneath_are_updated_then_it_answers_as_when_both_are_merged(
    replica: Replica, factors: dict[str, tuple[torch.Tensor, torch.Tensor]], tmp_path: Path
) -> None:
    second, first = replica.loaded_by_itself(2), replica.loaded_by_itself(1)
    before = likely(replica, lora_path=ADAPTER)
    for seed, said in ((2, second), (1, first), (2, second)):
        update([replica], replica.checkpoint(seed), f"v{seed}")
        assert replica.answers() == said
    alone = likely(replica, lora_path=ADAPTER)
    merged = load_file(replica.checkpoint(2) / "model.safetensors")
    for name, (one, other) in factors.items():
        merged[name] = (merged[name].float() + ALPHA / RANK * other @ one).to(merged[name].dtype)
    save_file(merged, tmp_path / "model.safetensors")
    update([replica], tmp_path, "merged")
    assert furthest(likely(replica), alone) < 0.1
    assert furthest(alone, before) > 0.5
    update([replica], replica.checkpoint(1), "v1")
    assert likely(replica, lora_path=ADAPTER) == before
