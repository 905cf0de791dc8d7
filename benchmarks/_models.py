"""Holds the shapes of real models, for synthetic weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

import torch

from ckpt_transport import dtypes
from ckpt_transport.planning import TensorSpec

Shapes = Mapping[str, tuple[int, ...]]
BF16_BYTES = 2
LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
"""Last parts of the names of layers that are quantized."""
VALUES = 251
"""Values from 0 to this are exact in bf16."""


def dense(layers: int = 36) -> Shapes:
    """Qwen3-8B: 399 tensors, 16.4 GB in bf16."""
    hidden, inter, heads, kv_heads, head, vocab = 4096, 12288, 32, 8, 128, 151936
    found = {"embed": (vocab, hidden), "norm": (hidden,), "lm_head": (vocab, hidden)}
    for layer in range(layers):
        found |= _attention(layer, hidden, heads * head, kv_heads * head, head)
        found[f"{layer}_gate"] = found[f"{layer}_up"] = (inter, hidden)
        found[f"{layer}_down"] = (hidden, inter)
    return found


def mixture(layers: int = 24) -> Shapes:
    """Qwen3-30B-A3B; half of its 48 layers are 9,435 tensors, 31.2 GB in bf16."""
    hidden, inter, heads, kv_heads, head, vocab, experts = 2048, 768, 32, 4, 128, 151936, 128
    found = {"embed": (vocab, hidden), "norm": (hidden,), "lm_head": (vocab, hidden)}
    for layer in range(layers):
        found |= _attention(layer, hidden, heads * head, kv_heads * head, head)
        found[f"{layer}_router"] = (experts, hidden)
        for expert in range(experts):
            found[f"{layer}_{expert}_gate"] = found[f"{layer}_{expert}_up"] = (inter, hidden)
            found[f"{layer}_{expert}_down"] = (hidden, inter)
    return found


def narrowed(shapes: Shapes, times: int) -> Shapes:
    """As many tensors, of so many times fewer rows."""
    return {name: (max(1, rows // times), *columns) for name, (rows, *columns) in shapes.items()}


def named_as_modules(shapes: Shapes) -> Shapes:
    """The same, with names whose last but one part says whether they are linear layers."""
    found = {}
    for name, shape in shapes.items():
        layer, _, last = name.rpartition("_")
        linear = last in LINEAR and len(shape) == 2
        module = f"layers.{layer}.{last}_proj" if linear else f"others.{name}.embed_tokens"
        found[f"{module}.weight"] = shape
    return found


def _attention(layer: int, hidden: int, queries: int, keys: int, head: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{layer}_q": (queries, hidden),
        f"{layer}_k": (keys, hidden),
        f"{layer}_v": (keys, hidden),
        f"{layer}_o": (hidden, queries),
        f"{layer}_q_norm": (head,),
        f"{layer}_k_norm": (head,),
        f"{layer}_norm": (hidden,),
        f"{layer}_post_norm": (hidden,),
    }


def size(shapes: Shapes) -> int:
    """Bytes in bf16."""
    return sum(map(prod, shapes.values())) * BF16_BYTES


def value(index: int, version: int) -> float:
    """What every element of a tensor is in a version; neighbours differ, and so do versions."""
    return float((index * 7 + version) % VALUES)


def tensors(shapes: Shapes, version: int) -> dict[str, torch.Tensor]:
    """A version's tensors, which take no memory themselves."""
    return {
        name: torch.tensor(value(index, version), dtype=torch.bfloat16).expand(shape)
        for index, (name, shape) in enumerate(shapes.items())
    }


class Weights(torch.nn.Module):
    """All of a model's weights on one device, as an engine has them."""

    def __init__(self, shapes: Shapes, device: torch.device) -> None:
        super().__init__()
        for name, shape in shapes.items():
            empty = torch.zeros(shape, dtype=torch.bfloat16, device=device)
            self.register_parameter(name, torch.nn.Parameter(empty, requires_grad=False))

    def wrong(self, version: int) -> list[str]:
        """Names of tensors that are not those of that version, bit by bit."""
        named = enumerate(self.named_parameters())
        return [name for index, (name, found) in named if not bool((found == value(index, version)).all())]


class Holding(torch.nn.Module):
    """Holds tensors of these names and types, in modules of those names."""

    def __init__(self, specs: Iterable[TensorSpec], device: torch.device) -> None:
        super().__init__()
        for spec in specs:
            module: torch.nn.Module = self
            *path, last = spec.name.split(".")
            for part in path:
                if part not in module._modules:
                    module.add_module(part, torch.nn.Module())
                module = module.get_submodule(part)
            module.register_buffer(last, torch.zeros(spec.shape, dtype=dtypes.TORCH[spec.dtype], device=device))
