"""A small transformer of the Llama architecture, tensor parallel, with fused projections as real engines have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.llama.parallel import TensorParallel, VocabularyEmbedding


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a model, as ``config.json`` names them."""

    vocab_size: int = 2048
    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 4
    num_attention_heads: int = 12
    num_key_value_heads: int = 4
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads


class Context:
    """The tokens of one sequence, and the keys and values of those that a forward pass has seen.

    Args:
        model: the one that will continue it.
        tokens: to begin with.

    Attributes:
        tokens: all of them; append to it.
        seen: how many have keys and values.
        version: of the weights that the latest forward pass computed with.
    """

    def __init__(self, model: Transformer, tokens: Sequence[int]) -> None:
        config = model.config
        heads = config.num_key_value_heads // model.group.size
        shape = (config.num_hidden_layers, 2, heads, config.max_position_embeddings, config.head_size)
        self.tokens = list(tokens)
        self.seen = 0
        self.version = ""
        self._memory = torch.empty(shape)

    def renew(self, version: str) -> None:
        """Forget what another version has computed."""
        if version != self.version:
            self.seen, self.version = 0, version

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put in the unseen tokens' keys and values; returns all there are now. Each is heads x tokens x head size."""
        memory, end = self._memory[layer], self.seen + keys.shape[1]
        memory[0, :, self.seen : end] = keys
        memory[1, :, self.seen : end] = values
        return memory[0, :, :end], memory[1, :, :end]


class Rotary:
    """Rotary position embedding of the first half of a head against its second half."""

    def __init__(self, config: ModelConfig) -> None:
        exponents = torch.arange(0, config.head_size, 2) / config.head_size
        angles = torch.outer(torch.arange(config.max_position_embeddings).float(), config.rope_theta**-exponents)
        self._cos, self._sin = torch.cat([angles, angles], 1).cos(), torch.cat([angles, angles], 1).sin()

    def __call__(self, x: Tensor, first: int) -> Tensor:
        end = first + x.shape[1]
        left, right = x.chunk(2, dim=-1)
        return x * self._cos[first:end] + torch.cat([-right, left], dim=-1) * self._sin[first:end]


class Attention(nn.Module):
    """Grouped-query attention over this worker's heads, for several sequences side by side."""

    def __init__(self, config: ModelConfig, group: TensorParallel, rotary: Rotary) -> None:
        super().__init__()
        self._group, self._rotary, self._size = group, rotary, config.head_size
        self._heads = config.num_attention_heads // group.size
        self._kv_heads = config.num_key_value_heads // group.size
        self.qkv_proj = nn.Linear(config.hidden_size, (self._heads + 2 * self._kv_heads) * self._size, bias=False)
        self.o_proj = nn.Linear(self._heads * self._size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, layer: int, contexts: Sequence[Context]) -> Tensor:
        unseen = [len(context.tokens) - context.seen for context in contexts]
        parts = self.qkv_proj(x).split_with_sizes(unseen)
        mixed = [self._mix(part, layer, context) for part, context in zip(parts, contexts, strict=True)]
        return self._group.sum(self.o_proj(torch.cat(mixed)))

    def _mix(self, projected: Tensor, layer: int, context: Context) -> Tensor:
        heads = projected.view(len(projected), -1, self._size).transpose(0, 1)
        queries, keys, values = heads.split_with_sizes([self._heads, self._kv_heads, self._kv_heads])
        queries, keys = self._rotary(queries, context.seen), self._rotary(keys, context.seen)
        keys, values = context.extend(layer, keys, values)
        positions = torch.arange(keys.shape[1])
        visible = positions <= positions[context.seen :, None]
        mixed = functional.scaled_dot_product_attention(
            queries[None], keys[None], values[None], attn_mask=visible, enable_gqa=True
        )
        return mixed[0].transpose(0, 1).flatten(1)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig, group: TensorParallel) -> None:
        super().__init__()
        self._group = group
        inner = config.intermediate_size // group.size
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * inner, bias=False)
        self.down_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self._group.sum(self.down_proj(functional.silu(gate) * up))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, group: TensorParallel, rotary: Rotary) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, group, rotary)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, group)

    def forward(self, x: Tensor, layer: int, contexts: Sequence[Context]) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), layer, contexts)
        return cast(Tensor, x + self.mlp(self.post_attention_layernorm(x)))


class Body(nn.Module):
    def __init__(self, config: ModelConfig, group: TensorParallel) -> None:
        super().__init__()
        rotary = Rotary(config)
        self.embed_tokens = VocabularyEmbedding(config.vocab_size, config.hidden_size, group)
        self.layers = nn.ModuleList(Layer(config, group, rotary) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, contexts: Sequence[Context]) -> Tensor:
        x = self.embed_tokens(torch.tensor([token for context in contexts for token in context.tokens[context.seen :]]))
        for number, layer in enumerate(self.layers):
            x = layer(x, number, contexts)
        return cast(Tensor, self.norm(x))


class Transformer(nn.Module):
    """The whole model, or one worker's shard of it.

    Args:
        config: its sizes; heads and widths must divide by the group's size.
        group: who shares it.

    Attributes:
        version: says which version the weights are.
    """

    def __init__(self, config: ModelConfig, group: TensorParallel) -> None:
        super().__init__()
        self.config, self.group = config, group
        self.version: Callable[[], str] = str
        self.model = Body(config, group)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size // group.size, bias=False)
        self.requires_grad_(False)

    @torch.inference_mode()
    def forward(self, contexts: Sequence[Context]) -> tuple[Tensor, ...]:
        """For each sequence, the logits after each of its unseen tokens, which have been seen then.

        Weights change only between forward passes, and for all workers before the same one: they forget keys and
        values in the same forward pass because that is decided in here.
        """
        version = self.version()
        for context in contexts:
            context.renew(version)
        unseen = [len(context.tokens) - context.seen for context in contexts]
        hidden = self.model(contexts)
        for context in contexts:
            context.seen = len(context.tokens)
        return torch.cat(self.group.gather(self.lm_head(hidden)), dim=-1).split_with_sizes(unseen)
