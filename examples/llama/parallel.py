"""Tensor parallelism: the group of workers that share one model, and the layers that are split over it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional


class TensorParallel:
    """The workers of one engine, over torch's default process group; alone, it needs no process group.

    Args:
        rank: this worker.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of everybody's tensor, in place."""
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

    def broadcast(self, data: bytes) -> bytes:
        """What rank 0 passed in, on every rank."""
        if self.size == 1:
            return data
        length = torch.tensor([len(data)])
        dist.broadcast(length, src=0)
        body = as_tensor(data) if self.rank == 0 else torch.empty(int(length.item()), dtype=torch.uint8)
        if body.numel():
            dist.broadcast(body, src=0)
        return as_bytes(body)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """What every rank passed in, by rank."""
        lengths = [int(part.item()) for part in self.gather(torch.tensor([len(data)]))]
        padded = as_tensor(data.ljust(max(lengths), b"\0"))
        return [as_bytes(part[:length]) for part, length in zip(self.gather(padded), lengths, strict=True)]


def as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def as_bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


class Linear(nn.Module):
    """A matrix, or this worker's columns or rows of one; the caller adds up where it must."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)


class VocabularyEmbedding(nn.Module):
    """This worker's run of the vocabulary; tokens of others contribute zeros to the sum."""

    def __init__(self, vocabulary: int, width: int, group: TensorParallel) -> None:
        super().__init__()
        self._group = group
        self._rows = vocabulary // group.size
        self.weight = nn.Parameter(torch.empty(self._rows, width), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        local = tokens - self._group.rank * self._rows
        mine = (local >= 0) & (local < self._rows)
        rows = functional.embedding(local.clamp(0, self._rows - 1), self.weight)
        return self._group.sum(rows * mine.unsqueeze(-1))
