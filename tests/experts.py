"""An engine of several ranks for tests: each has rows of one weight, and some of the experts in one parameter."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ckpt_transport_torch import Loader

WIDTH, EXPERTS = 256, 8


class Rank(torch.nn.Module):
    """One rank of a layer of experts, as inference engines lay them out."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.rows, self.count = rank, WIDTH // size, EXPERTS // size
        self.norm = torch.nn.Parameter(torch.zeros(WIDTH))
        self.column = torch.nn.Parameter(torch.zeros(self.rows, WIDTH))
        self.across = torch.nn.Parameter(torch.zeros(WIDTH, self.rows))
        self.experts = torch.nn.Parameter(torch.zeros(self.count, WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x[..., :WIDTH] * self.norm) @ self.experts[0]


def rank_of(seed: int, rank: int, size: int) -> Rank:
    """A rank without weights; ``seed`` is not used."""
    return Rank(rank, size)


def loader(module: Rank) -> Loader:
    """Slices the shard of one rank out of whole tensors, and leaves experts of other ranks alone."""

    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        first = module.rank * module.rows
        for name, tensor in pairs:
            with torch.no_grad():
                if name == "norm":
                    module.norm.copy_(tensor)
                elif name == "column":
                    module.column.copy_(tensor.narrow(0, first, module.rows))
                elif name == "across":
                    module.across.copy_(tensor.narrow(1, first, module.rows))
                else:
                    expert = int(name.removeprefix("experts.")) - module.rank * module.count
                    if 0 <= expert < module.count:
                        module.experts[expert].copy_(tensor)

    return load


def weights_of(seed: int) -> dict[str, torch.Tensor]:
    """A checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    names = ["norm", "column", "across", *(f"experts.{n}" for n in range(EXPERTS))]
    shapes = [(WIDTH,), *[(WIDTH, WIDTH)] * (EXPERTS + 2)]
    return {name: torch.randn(shape, generator=generator) for name, shape in zip(names, shapes, strict=True)}


def loaded(seed: int, rank: int, size: int) -> dict[str, torch.Tensor]:
    """What a rank holds of it."""
    module = Rank(rank, size)
    loader(module)(weights_of(seed).items())
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}
