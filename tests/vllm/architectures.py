"""Tiny checkpoints of more kinds of models: whatever their loaders do that others do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

from tests.support import tiny_models

HIDDEN = 128


def _small(**more: Any) -> dict[str, Any]:
    return {
        **tiny_models.shared(HIDDEN, 2),
        "num_key_value_heads": 2,
        "head_dim": 32,
        "tie_word_embeddings": False,
        **more,
    }


def _gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=320, n_embd=HIDDEN, n_layer=2, n_head=4, n_positions=512, dtype="bfloat16")
    )


def _bloom() -> Any:
    return transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=320, hidden_size=HIDDEN, n_layer=2, n_head=4, dtype="bfloat16")
    )


def _phi3() -> Any:
    small = _small(pad_token_id=0)
    del small["head_dim"]
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**small))


def _gemma3() -> Any:
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**_small(tie_word_embeddings=True)))


def _falcon() -> Any:
    return transformers.FalconForCausalLM(
        transformers.FalconConfig(
            vocab_size=320,
            hidden_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_kv_heads=2,
            new_decoder_architecture=True,
            dtype="bfloat16",
        )
    )


def _granite_moe() -> Any:
    small = _small(num_local_experts=8, num_experts_per_tok=2)
    del small["head_dim"]
    return transformers.GraniteMoeForCausalLM(transformers.GraniteMoeConfig(**small))


def _granite_hybrid() -> Any:
    small = _small(num_local_experts=8, num_experts_per_tok=2, shared_intermediate_size=256)
    del small["head_dim"]
    return transformers.GraniteMoeHybridForCausalLM(
        transformers.GraniteMoeHybridConfig(
            **small,
            layer_types=["mamba", "attention"],
            mamba_n_heads=8,
            mamba_d_head=32,
            mamba_d_state=16,
            mamba_n_groups=1,
            position_embedding_type="rope",
        )
    )


def _mixtral() -> Any:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**_small(num_local_experts=8, num_experts_per_tok=2))
    )


def _gpt_oss() -> Any:
    return transformers.GptOssForCausalLM(
        transformers.GptOssConfig(**_small(num_local_experts=8, num_experts_per_tok=2, sliding_window=128))
    )


def _llama4() -> Any:
    return transformers.Llama4ForCausalLM(
        transformers.Llama4TextConfig(
            **_small(
                intermediate_size_mlp=256,
                num_local_experts=8,
                num_experts_per_tok=1,
                interleave_moe_layer_step=1,
                attention_chunk_size=256,
                pad_token_id=0,
            )
        )
    )


def _mamba2() -> Any:
    return transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(
            vocab_size=320, hidden_size=HIDDEN, num_hidden_layers=2, num_heads=8, head_dim=32, n_groups=1,
            state_size=16, dtype="bfloat16", bos_token_id=256, eos_token_id=257, pad_token_id=0,
        )
    )  # fmt: skip


def _llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_small()))


def _olmo2() -> Any:
    small = _small(pad_token_id=0)
    del small["head_dim"]
    return transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**small))


def _deepseek2() -> Any:
    small = _small(num_key_value_heads=4)
    del small["head_dim"]
    return transformers.DeepseekV2ForCausalLM(
        transformers.DeepseekV2Config(
            **small,
            moe_intermediate_size=64,
            n_routed_experts=8,
            n_shared_experts=1,
            num_experts_per_tok=2,
            first_k_dense_replace=1,
            q_lora_rank=None,
            kv_lora_rank=512,
            qk_rope_head_dim=64,
            qk_nope_head_dim=128,
            v_head_dim=128,
            topk_method="greedy",
            n_group=1,
            topk_group=1,
        )
    )


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "bloom": _bloom,
    "deepseek2": _deepseek2,
    "falcon": _falcon,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "gpt_oss": _gpt_oss,
    "granite_hybrid": _granite_hybrid,
    "granite_moe": _granite_moe,
    "llama": _llama,
    "llama4": _llama4,
    "mamba2": _mamba2,
    "mixtral": _mixtral,
    "olmo2": _olmo2,
    "phi3": _phi3,
}
"""Beside :data:`tests.support.tiny_models.FAMILIES`."""


def _of_any_size(make: Callable[[], Any]) -> Callable[[int, int], Any]:
    return lambda hidden, layers: make()


tiny_models.FAMILIES.update({name: _of_any_size(make) for name, make in ARCHITECTURES.items()})
