"""Checkpoints as Hugging Face directories: ``config.json``, sharded safetensors and their index."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from examples.llama.model import ModelConfig

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 32 << 20


def write(directory: Path, config: ModelConfig, seed: int) -> None:
    """Write a checkpoint with random weights.

    Args:
        directory: made, and must not exist.
        config: the sizes of the model.
        seed: other seeds, other weights.
    """
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    shards: list[dict[str, Tensor]] = [{}]
    room = SHARD_BYTES
    for name, shape in shapes(config).items():
        tensor = _weights(name, shape, generator)
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor
        room -= tensor.nbytes
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, directory / file, metadata={"format": "pt"})
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    _write_json(directory / INDEX, {"metadata": {"total_size": size(config)}, "weight_map": weight_map})
    _write_json(
        directory / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "float32",
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            **msgspec.structs.asdict(config),
        },
    )


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint, in order."""
    width, inner = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * config.head_size
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, width)}
    for number in range(config.num_hidden_layers):
        layer = f"model.layers.{number}"
        found |= {
            f"{layer}.input_layernorm.weight": (width,),
            f"{layer}.self_attn.q_proj.weight": (width, width),
            f"{layer}.self_attn.k_proj.weight": (keys, width),
            f"{layer}.self_attn.v_proj.weight": (keys, width),
            f"{layer}.self_attn.o_proj.weight": (width, width),
            f"{layer}.post_attention_layernorm.weight": (width,),
            f"{layer}.mlp.gate_proj.weight": (inner, width),
            f"{layer}.mlp.up_proj.weight": (inner, width),
            f"{layer}.mlp.down_proj.weight": (width, inner),
        }
    return found | {"model.norm.weight": (width,), "lm_head.weight": (config.vocab_size, width)}


def size(config: ModelConfig) -> int:
    """Bytes of all tensors."""
    return sum(math.prod(shape) for shape in shapes(config).values()) * torch.float32.itemsize


def read_config(directory: Path) -> ModelConfig:
    return msgspec.json.decode((directory / "config.json").read_bytes(), type=ModelConfig)


class Checkpoint:
    """The tensors of a checkpoint directory, read where they are asked for."""

    def __init__(self, directory: Path) -> None:
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        self._file_of: dict[str, str] = index["weight_map"]
        self._files: dict[str, Any] = {
            file: safe_open(directory / file, "pt") for file in sorted(set(self._file_of.values()))
        }

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor, whole, one after the other."""
        for name, file in self._file_of.items():
            yield name, self._files[file].get_tensor(name)

    def part(self, name: str, dim: int, first: int, count: int) -> Tensor:
        """Rows (``dim`` 0) or columns (``dim`` 1) of one tensor; nothing else of it is read."""
        span = slice(first, first + count)
        piece: Tensor = self._files[self._file_of[name]].get_slice(name)[span if dim == 0 else (slice(None), span)]
        return piece

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.__exit__(kind, error, trace)


def _weights(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return 1 + 0.1 * torch.randn(shape, generator=generator)
    scale = 1.0 if name == "model.embed_tokens.weight" else shape[1] ** -0.5
    return scale * torch.randn(shape, generator=generator)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
