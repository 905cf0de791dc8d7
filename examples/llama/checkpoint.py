"""Checkpoints as Hugging Face directories, and which part of each tensor belongs where in a worker's parameters."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from examples.llama.model import ModelConfig, Transformer
from examples.llama.parallel import TensorParallel

INDEX = "model.safetensors.index.json"
FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
SPLIT_BY_COLUMNS = ("o_proj", "down_proj")


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


def write(directory: Path, config: ModelConfig, seed: int) -> None:
    """Write a checkpoint with random weights, a file for each layer.

    Args:
        directory: made, and must not exist.
        config: the sizes of the model.
        seed: other seeds give other weights.
    """
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    files: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, shape in shapes(config).items():
        layer = name.split(".")[2] if ".layers." in name else "ends"
        files[f"model-{layer}.safetensors"][name] = _weights(name, shape, generator)
    for file, tensors in files.items():
        save_file(tensors, directory / file, metadata={"format": "pt"})
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    _write_json(directory / INDEX, {"metadata": {"total_size": size(config)}, "weight_map": weight_map})
    kind = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float32",
        "hidden_act": "silu",
    }
    _write_json(directory / "config.json", kind | {"tie_word_embeddings": False} | msgspec.structs.asdict(config))


def read_config(directory: Path) -> ModelConfig:
    return msgspec.json.decode((directory / "config.json").read_bytes(), type=ModelConfig)


def read(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, whole, one after the other."""
    weight_map = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
    for file in dict.fromkeys(weight_map.values()):
        with safe_open(directory / file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                yield name, tensors.get_tensor(name)


class Place(NamedTuple):
    """A worker's part of one checkpoint tensor: a run along one dimension, and where it goes in a parameter."""

    parameter: str
    dim: int
    source: int
    target: int
    size: int


def places(config: ModelConfig, group: TensorParallel) -> dict[str, Place]:
    """The place of every tensor of a checkpoint, by its name there. Tensors that are fused lie in their own order."""
    found: dict[str, Place] = {}
    filled = Counter[str]()
    for name, shape in shapes(config).items():
        module = name.split(".")[-2]
        parameter = name.replace(module, FUSED.get(module, module))
        dim = 1 if module in SPLIT_BY_COLUMNS else 0
        shares = 1 if len(shape) == 1 else group.size
        size = shape[dim] // shares
        found[name] = Place(parameter, dim, group.rank * size if shares > 1 else 0, filled[parameter], size)
        filled[parameter] += size
    return found


class Loader:
    """The engine's own way to take checkpoint tensors: cut this worker's part, put it where it is fused to."""

    def __init__(self, model: Transformer) -> None:
        self._parameters = dict(model.named_parameters())
        self._places = places(model.config, model.group)

    def __call__(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """
        Raises:
            KeyError: the model has no place for a tensor of that name.
        """
        for name, tensor in weights:
            place = self._places[name]
            target = self._parameters[place.parameter].narrow(place.dim, place.target, place.size)
            target.copy_(tensor.narrow(place.dim, place.source, place.size))


def compare(model: Transformer, directory: Path) -> dict[str, int]:
    """How many elements of each parameter are not, bit by bit, what a model holds that is loaded from the files."""
    loaded = Transformer(model.config, model.group)
    for parameter in loaded.parameters():
        parameter.fill_(math.nan)  # differs from whatever is served, unless it is loaded
    Loader(loaded)(read(directory))
    expected = dict(loaded.named_parameters())
    return {
        name: int((served.view(torch.int32) != expected[name].view(torch.int32)).sum())
        for name, served in model.named_parameters()
    }


def _weights(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return 1 + 0.1 * torch.randn(shape, generator=generator)
    scale = 1.0 if name == "model.embed_tokens.weight" else shape[1] ** -0.5
    return scale * torch.randn(shape, generator=generator)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
