"""A tensor-parallel engine for tests: each rank has some rows of one matrix and some columns of another."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ckpt_transport_torch import Loader

WIDTH = 2048


class Rank(torch.nn.Module):
    """One rank of a pair of linear layers."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size, part = rank, size, WIDTH // size
        self.norm = torch.nn.Parameter(torch.zeros(WIDTH, dtype=torch.bfloat16))
        self.up = torch.nn.Parameter(torch.zeros(part, WIDTH, dtype=torch.bfloat16))
        self.down = torch.nn.Parameter(torch.zeros(WIDTH, part, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.norm) @ self.up.T @ self.down.T


def rank_of(seed: int, rank: int, size: int) -> Rank:
    """A rank without weights; ``seed`` is not used."""
    return Rank(rank, size)


def part_of(name: str, tensor: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """What a rank has of a tensor."""
    if name == "norm":
        return tensor
    part = WIDTH // size
    return tensor.narrow(0 if name == "up" else 1, rank * part, part)


def loader(module: Rank) -> Loader:
    """Slices the part of one rank out of whole tensors."""

    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        with torch.no_grad():
            for name, tensor in pairs:
                module.get_parameter(name).copy_(part_of(name, tensor, module.rank, module.size))

    return load


def weights_of(seed: int) -> dict[str, torch.Tensor]:
    """A checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"norm": (WIDTH,), "up": (WIDTH, WIDTH), "down": (WIDTH, WIDTH)}
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
