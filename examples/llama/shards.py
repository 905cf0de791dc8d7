"""Which part of which checkpoint tensor belongs where in a worker's fused and sharded parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from examples.llama.model import ModelConfig, Transformer
from examples.llama.parallel import TensorParallel

Read = Callable[[str, int, int, int], Tensor]
"""Reads rows or columns of a checkpoint tensor: name, dimension, first, count."""


class Place(NamedTuple):
    """A worker's part of one checkpoint tensor: a run along one dimension, and where it goes in a parameter."""

    parameter: str
    dim: int
    source: int
    target: int
    size: int


class Mismatch(NamedTuple):
    parameter: str
    elements: int


def places(config: ModelConfig, group: TensorParallel) -> dict[str, Place]:
    """The place of every tensor of a checkpoint, by its name there."""
    queries = config.hidden_size // group.size
    keys = config.num_key_value_heads * config.head_size // group.size
    inner = config.intermediate_size // group.size
    vocabulary = config.vocab_size // group.size

    def cut(parameter: str, dim: int, size: int, target: int = 0) -> Place:
        return Place(parameter, dim, group.rank * size, target, size)

    def whole(parameter: str) -> Place:
        return Place(parameter, 0, 0, 0, config.hidden_size)

    found = {
        "model.embed_tokens.weight": cut("model.embed_tokens.weight", 0, vocabulary),
        "model.norm.weight": whole("model.norm.weight"),
        "lm_head.weight": cut("lm_head.weight", 0, vocabulary),
    }
    for number in range(config.num_hidden_layers):
        layer = f"model.layers.{number}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        found |= {
            f"{layer}.input_layernorm.weight": whole(f"{layer}.input_layernorm.weight"),
            f"{attention}.q_proj.weight": cut(f"{attention}.qkv_proj.weight", 0, queries),
            f"{attention}.k_proj.weight": cut(f"{attention}.qkv_proj.weight", 0, keys, queries),
            f"{attention}.v_proj.weight": cut(f"{attention}.qkv_proj.weight", 0, keys, queries + keys),
            f"{attention}.o_proj.weight": cut(f"{attention}.o_proj.weight", 1, queries),
            f"{layer}.post_attention_layernorm.weight": whole(f"{layer}.post_attention_layernorm.weight"),
            f"{mlp}.gate_proj.weight": cut(f"{mlp}.gate_up_proj.weight", 0, inner),
            f"{mlp}.up_proj.weight": cut(f"{mlp}.gate_up_proj.weight", 0, inner, inner),
            f"{mlp}.down_proj.weight": cut(f"{mlp}.down_proj.weight", 1, inner),
        }
    return found


class Loader:
    """The engine's own way to take checkpoint tensors: cut this worker's part, put it where it is fused to."""

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._parameters = dict(model.named_parameters())
        self._places = places(model.config, model.group)

    def __call__(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """
        Raises:
            KeyError: the model has no place for a tensor of that name.
        """
        self._model.loads += 1
        for name, tensor in weights:
            place = self._places[name]
            target = self._parameters[place.parameter].narrow(place.dim, place.target, place.size)
            target.copy_(tensor.narrow(place.dim, place.source, place.size))


def compare(model: Transformer, read: Read) -> Iterator[Mismatch]:
    """How many elements of each parameter differ from the checkpoint, bit by bit; those of no origin differ, too."""
    origins: dict[str, dict[str, Place]] = {}
    for name, place in places(model.config, model.group).items():
        origins.setdefault(place.parameter, {})[name] = place
    for parameter, tensor in model.named_parameters():
        different = _different(tensor.detach(), origins.get(parameter, {}), read)
        yield Mismatch(parameter, different)


def _different(tensor: Tensor, origins: Mapping[str, Place], read: Read) -> int:
    wrong = torch.ones(tensor.shape, dtype=torch.bool)
    for name, place in origins.items():
        ours = tensor.narrow(place.dim, place.target, place.size)
        theirs = read(name, place.dim, place.source, place.size)
        same_kind = ours.dtype == theirs.dtype and ours.shape == theirs.shape
        wrong.narrow(place.dim, place.target, place.size).copy_(
            _bits(ours) != _bits(theirs) if same_kind else torch.ones_like(ours, dtype=torch.bool)
        )
    return int(wrong.sum())


def _bits(tensor: Tensor) -> Tensor:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(integers[tensor.element_size()])
