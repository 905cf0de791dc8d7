"""Tiny random checkpoints, as Hugging Face lays them out, with a tokenizer of bytes; nothing is downloaded.

Needs transformers and tokenizers, which come with vLLM. Usage: ``python -m tests.support.tiny_models --help``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

BEGIN, END = "<s>", "</s>"
VOCABULARY = 320
"""256 bytes, two marks, and room for what makes it a multiple of 64."""
SPREAD = 0.2
"""Standard deviation of weights: large enough that two seeds speak differently. Norms and biases differ by it too."""


def write(directory: Path, seed: int, family: str = "qwen3", hidden: int = 128, layers: int = 2) -> Path:
    """Write the checkpoint that ``seed`` determines.

    Args:
        directory: where to; made if need be.
        seed: of all weights.
        family: one of :data:`FAMILIES`.
        hidden: width of the model; a multiple of 128.
        layers: its depth.
    """
    _tokenizer().save_pretrained(directory)
    torch.manual_seed(seed)
    model = FAMILIES[family](hidden, layers).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += SPREAD * torch.randn_like(parameter)
    model.save_pretrained(directory)
    return directory


def _tokenizer() -> Any:
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), BEGIN, END]
    tokenizer = Tokenizer(models.BPE(vocab={mark: number for number, mark in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=END
    )


def shared(hidden: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "initializer_range": SPREAD,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "dtype": "bfloat16",
    }


def _qwen3(hidden: int, layers: int, tied: bool = False) -> Any:
    config = transformers.Qwen3Config(
        **shared(hidden, layers), num_key_value_heads=2, head_dim=hidden // 4, tie_word_embeddings=tied
    )
    return transformers.Qwen3ForCausalLM(config)


def _tied(hidden: int, layers: int) -> Any:
    return _qwen3(hidden, layers, tied=True)


def _moe(hidden: int, layers: int) -> Any:
    config = transformers.Qwen3MoeConfig(
        **shared(hidden, layers),
        num_key_value_heads=2,
        head_dim=hidden // 4,
        tie_word_embeddings=False,
        moe_intermediate_size=hidden // 2,
        num_experts=16,
        num_experts_per_tok=2,
    )
    return transformers.Qwen3MoeForCausalLM(config)


def _neox(hidden: int, layers: int) -> Any:
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**shared(hidden, layers)))


def _deepseek(hidden: int, layers: int) -> Any:
    sizes = shared(hidden, layers)
    config = transformers.DeepseekV3Config(
        **sizes,
        num_key_value_heads=sizes["num_attention_heads"],
        moe_intermediate_size=hidden // 2,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=256,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        qk_nope_head_dim=128,
        v_head_dim=128,
        num_nextn_predict_layers=0,
        topk_method="noaux_tc",
        scoring_func="sigmoid",
    )
    return transformers.DeepseekV3ForCausalLM(config)


FAMILIES: dict[str, Callable[[int, int], Any]] = {
    "qwen3": _qwen3,
    "tied": _tied,
    "moe": _moe,
    "neox": _neox,
    "deepseek": _deepseek,
}
"""Dense; dense with tied embeddings; experts; one whose fused attention is called ``query_key_value``; and experts with
attention that compresses keys and values (MLA), after a dense layer."""


def main(
    folder: Annotated[Path, typer.Argument(help="Where to write FAMILY-SEED folders.")],
    family: Annotated[list[str], typer.Option(help="Of models; may be given many times.")],
    seed: Annotated[list[int], typer.Option(help="Of weights; may be given many times.")],
    hidden: Annotated[int, typer.Option(help="Width of the models, a multiple of 128.")] = 128,
    layers: Annotated[int, typer.Option(help="Their depth.")] = 2,
) -> None:
    """Write tiny random checkpoints, one for each family and seed."""
    for name in family:
        for number in seed:
            write(folder / f"{name}-{number}", number, name, hidden, layers)


if __name__ == "__main__":
    typer.run(main)
