"""Runs the example of TRL's asynchronous GRPO without a GPU, which the kernel of its attention needs.

Usage: ``python -m tests.vllm.trl_on_cpus DIR URL FOLDER``, as the example.
"""

from __future__ import annotations

import functools
import itertools
import sys
from types import SimpleNamespace
from typing import Any

import torch
import trl.experimental.async_grpo.async_grpo_trainer as trl_trainer
import trl.experimental.async_grpo.packing as trl_packing
from trl.experimental.async_grpo import AsyncGRPOConfig

from examples.trainers import trl_async_grpo


def attention_of_segments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_ends: torch.Tensor,
    key_ends: torch.Tensor,
    *_: Any,
    softmax_scale: float | None,
    **__: Any,
) -> torch.Tensor:
    """What ``flash_attn_varlen_func`` computes, causally: each segment attends to the path that ends with it.

    Args:
        query: ``[tokens, heads, width]``, segment after segment.
        key, value: ``[length of all paths, heads of keys, width]``.
        query_ends, key_ends: where segments, and where paths, begin and end, ``[segments + 1]``.
    """
    found = []
    bounds = zip(itertools.pairwise(query_ends.tolist()), itertools.pairwise(key_ends.tolist()), strict=True)
    for (begin, end), (key_begin, key_end) in bounds:
        own, path = end - begin, key_end - key_begin
        seen = torch.ones(own, path, dtype=torch.bool).tril(path - own)
        segment, keys, values = (
            part.transpose(0, 1) for part in (query[begin:end], key[key_begin:key_end], value[key_begin:key_end])
        )
        found.append(
            torch.nn.functional.scaled_dot_product_attention(
                segment, keys, values, attn_mask=seen, scale=softmax_scale, enable_gqa=True
            ).transpose(0, 1)
        )
    return torch.cat(found)


def main(*arguments: str) -> None:
    """Run it."""
    trl_packing._flash_attn = lambda: SimpleNamespace(flash_attn_varlen_func=attention_of_segments)
    trl_trainer.get_peak_flops_per_device = lambda *_: None  # it asks for the name of a GPU
    example: Any = trl_async_grpo
    example.AsyncGRPOConfig = functools.partial(AsyncGRPOConfig, use_cpu=True, bf16=False)
    example.main(*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
