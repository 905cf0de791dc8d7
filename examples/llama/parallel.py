"""Tensor parallelism: the group of workers that share one model, and the layer that only they need."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional


class TensorParallel:
    """The workers of one engine, over torch's default process group. One worker alone needs no process group.

    Args:
        rank: of this worker.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up everybody's tensor, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Everybody's tensor, of equal shapes, by rank."""
        if self.size == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor)
        return parts

    def broadcast(self, value: Any) -> Any:
        """What rank 0 passed in, on every rank; anything that can be pickled."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """What every rank passed in, by rank; anything that can be pickled."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values


class VocabularyEmbedding(nn.Module):
    """This worker's rows of the vocabulary; the tokens of others contribute zeros to the sum."""

    def __init__(self, vocabulary: int, width: int, group: TensorParallel) -> None:
        super().__init__()
        self._group = group
        self._rows = vocabulary // group.size
        self.weight = nn.Parameter(torch.empty(self._rows, width))

    def forward(self, tokens: Tensor) -> Tensor:
        local = tokens - self._group.rank * self._rows
        mine = (local >= 0) & (local < self._rows)
        rows = functional.embedding(local.clamp(0, self._rows - 1), self.weight)
        return self._group.sum(rows * mine.unsqueeze(-1))
