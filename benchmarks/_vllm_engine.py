"""Makes a vLLM in this process with the shapes of a real model and weights of no meaning."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.vllm.fp8_checkpoints import CONFIGS
from tests.vllm.fp8_modes import MODES

LAYERS = {"dense": 36, "mixture": 24}
KEEPERS = ("modules_to_not_convert", "ignored_layers")


def start(folder: Path, model: str, mode: str, layers: int | None, *, narrow: int = 1, **more: Any) -> tuple[Any, Any]:
    """The engine, and the configuration of its model; VLLM_ARGUMENTS may hold further arguments of LLM as JSON.

    Args:
        folder: empty; gets the configuration.
        model: dense or mixture.
        mode: one of MODES, or bf16.
        layers: of the model; None for as many as the real one has, or half of them.
        narrow: by how much widths are divided.
        more: arguments of LLM.
    """
    import vllm

    chosen = None if mode == "bf16" else MODES[mode]
    arguments = json.loads(os.environ.get("VLLM_ARGUMENTS", "{}")) | ({} if chosen is None else chosen.arguments)
    config = write_config(folder, model, layers or LAYERS[model], "" if chosen is None else chosen.checkpoint, narrow)
    llm = vllm.LLM(
        str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=4,
        dtype="bfloat16",
        **arguments,
        **more,
    )
    return llm, config


def write_config(folder: Path, model: str, layers: int, checkpoint: str, narrow: int = 1) -> Any:
    """A directory with a configuration and nothing else; returns the model's, of transformers."""
    import transformers

    shared = {
        "vocab_size": 151936 // narrow,
        "num_hidden_layers": layers,
        "num_attention_heads": max(32 // narrow, 4),
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    if model == "dense":
        config = transformers.Qwen3Config(
            **shared,
            hidden_size=4096 // narrow,
            intermediate_size=12288 // narrow,
            num_key_value_heads=max(8 // narrow, 2),
            architectures=["Qwen3ForCausalLM"],
        )
    else:
        config = transformers.Qwen3MoeConfig(
            **shared,
            hidden_size=2048 // narrow,
            intermediate_size=6144 // narrow,
            moe_intermediate_size=768 // narrow,
            num_key_value_heads=max(4 // narrow, 2),
            num_experts=128,
            num_experts_per_tok=8,
            architectures=["Qwen3MoeForCausalLM"],
        )
    content = config.to_dict() | {"architectures": config.architectures}
    if checkpoint:
        kept = ["lm_head", *(f"model.layers.{layer}.mlp.gate" for layer in range(layers))]
        chosen = dict(CONFIGS[checkpoint])
        content["quantization_config"] = chosen | {key: kept for key in KEEPERS if key in chosen}
    (folder / "config.json").write_text(json.dumps(content))
    return config


KEEPERS = ("modules_to_not_convert", "ignored_layers")


def names_of(config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, head = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        for name, shape in (
            ("q", (queries, hidden)),
            ("k", (keys, hidden)),
            ("v", (keys, hidden)),
            ("o", (hidden, queries)),
        ):
            yield f"{prefix}.self_attn.{name}_proj.weight", shape
        for name in ("q_norm", "k_norm"):
            yield f"{prefix}.self_attn.{name}.weight", (head,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{name}.weight", (hidden,)
        experts = getattr(config, "num_experts", 0)
        if experts:
            yield f"{prefix}.mlp.gate.weight", (experts, hidden)
        inner = config.moe_intermediate_size if experts else config.intermediate_size
        for part in [f"experts.{expert}." for expert in range(experts)] or [""]:
            for name in ("gate", "up"):
                yield f"{prefix}.mlp.{part}{name}_proj.weight", (inner, hidden)
            yield f"{prefix}.mlp.{part}down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (config.vocab_size, hidden)
