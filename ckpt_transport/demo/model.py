"""A small transformer of the Llama architecture, tensor parallel, with fused projections as real engines have."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from ckpt_transport.demo.parallel import Linear, TensorParallel, VocabularyEmbedding


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a model, as ``config.json`` names them."""

    vocab_size: int = 4096
    hidden_size: int = 512
    intermediate_size: int = 1408
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads


class Cache:
    """Keys and values of the tokens of one sequence.

    Attributes:
        length: how many tokens it holds.
        version: of the weights that the latest forward pass computed with.
    """

    def __init__(self, config: ModelConfig, group: TensorParallel) -> None:
        heads = config.num_key_value_heads // group.size
        shape = (config.num_hidden_layers, 2, heads, config.max_position_embeddings, config.head_size)
        self._memory = torch.empty(shape)
        self.length = 0
        self.version = ""
        self._loads = 0

    def renew(self, loads: int, version: str) -> None:
        """Forget what other weights have computed: those from before the latest of ``loads``."""
        if loads != self._loads:
            self.length, self._loads = 0, loads
        self.version = version

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put in the new tokens' keys and values; returns all there are now. Each is heads x tokens x head size."""
        memory, end = self._memory[layer], self.length + keys.shape[1]
        memory[0, :, self.length : end] = keys
        memory[1, :, self.length : end] = values
        return memory[0, :, :end], memory[1, :, :end]


class RMSNorm(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._epsilon = config.rms_norm_eps
        self.weight = nn.Parameter(torch.empty(config.hidden_size), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self._epsilon)


class Rotary(nn.Module):
    """Rotary position embedding of the first half of a head against its second half."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        exponents = torch.arange(0, config.head_size, 2) / config.head_size
        angles = torch.outer(torch.arange(config.max_position_embeddings).float(), config.rope_theta**-exponents)
        self._cos, self._sin = torch.cat([angles, angles], 1).cos(), torch.cat([angles, angles], 1).sin()

    def forward(self, x: Tensor, first: int) -> Tensor:
        end = first + x.shape[1]
        left, right = x.chunk(2, dim=-1)
        return x * self._cos[first:end] + torch.cat([-right, left], dim=-1) * self._sin[first:end]


class Attention(nn.Module):
    """Grouped-query attention over this worker's heads."""

    def __init__(self, config: ModelConfig, group: TensorParallel) -> None:
        super().__init__()
        self._group, self._size = group, config.head_size
        self._heads = config.num_attention_heads // group.size
        self._kv_heads = config.num_key_value_heads // group.size
        self._rotary = Rotary(config)
        self.qkv_proj = Linear(config.hidden_size, (self._heads + 2 * self._kv_heads) * self._size)
        self.o_proj = Linear(self._heads * self._size, config.hidden_size)

    def forward(self, x: Tensor, layer: int, cache: Cache) -> Tensor:
        projected = self.qkv_proj(x).view(len(x), -1, self._size).transpose(0, 1)
        queries, keys, values = projected.split([self._heads, self._kv_heads, self._kv_heads])
        queries, keys = self._rotary(queries, cache.length), self._rotary(keys, cache.length)
        keys, values = cache.extend(layer, keys, values)
        positions = torch.arange(keys.shape[1])
        visible = positions <= positions[cache.length :, None]
        mixed = functional.scaled_dot_product_attention(
            queries[None], keys[None], values[None], attn_mask=visible, enable_gqa=True
        )
        return self._group.sum(self.o_proj(mixed[0].transpose(0, 1).flatten(1)))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig, group: TensorParallel) -> None:
        super().__init__()
        self._group = group
        inner = config.intermediate_size // group.size
        self.gate_up_proj = Linear(config.hidden_size, 2 * inner)
        self.down_proj = Linear(inner, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self._group.sum(self.down_proj(functional.silu(gate) * up))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, group: TensorParallel) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config)
        self.self_attn = Attention(config, group)
        self.post_attention_layernorm = RMSNorm(config)
        self.mlp = MLP(config, group)

    def forward(self, x: Tensor, layer: int, cache: Cache) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), layer, cache)
        return cast(Tensor, x + self.mlp(self.post_attention_layernorm(x)))


class Body(nn.Module):
    def __init__(self, config: ModelConfig, group: TensorParallel) -> None:
        super().__init__()
        self.embed_tokens = VocabularyEmbedding(config.vocab_size, config.hidden_size, group)
        self.layers = nn.ModuleList(Layer(config, group) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config)

    def forward(self, tokens: Tensor, cache: Cache) -> Tensor:
        x = self.embed_tokens(tokens)
        for number, layer in enumerate(self.layers):
            x = layer(x, number, cache)
        return cast(Tensor, self.norm(x))


class Transformer(nn.Module):
    """The whole model, or one worker's shard of it.

    Args:
        config: its sizes; heads and widths must divide by the group's size.
        group: who shares it.

    Attributes:
        loads: how often weights were put in.
        version: says which version the weights are.
    """

    def __init__(self, config: ModelConfig, group: TensorParallel) -> None:
        super().__init__()
        self.config, self.group = config, group
        self.loads = 0
        self.version: Callable[[], str] = str
        self.model = Body(config, group)
        self.lm_head = Linear(config.hidden_size, config.vocab_size // group.size)

    @torch.inference_mode()
    def forward(self, tokens: list[int], cache: Cache) -> Tensor:
        """The logits after each token of the sequence that the cache does not hold yet.

        Weights change only between forward passes, and for all workers before the same one: they drop their caches in
        the same forward pass because it is decided in here.
        """
        cache.renew(self.loads, self.version())
        hidden = self.model(torch.tensor(tokens[cache.length :]), cache)
        cache.length = len(tokens)
        return torch.cat(self.group.gather(self.lm_head(hidden)), dim=-1)
