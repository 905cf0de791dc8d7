"""An engine for tests whose loader computes some of its parameters: each rank has some rows of two matrices."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ckpt_transport_torch import Loader

ROWS, WIDTH = 512, 512
GATES = 64


class Gate(torch.nn.Module):
    """What the loader computes, and keeps in another type."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(rows, WIDTH, dtype=torch.bfloat16))
        self.scale = torch.nn.Parameter(torch.zeros(GATES, dtype=torch.bfloat16))


class Rank(torch.nn.Module):
    """One rank."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size
        self.up = torch.nn.Parameter(torch.zeros(ROWS // size, WIDTH, dtype=torch.bfloat16))
        self.gate = Gate(GATES // size)
        self.down = torch.nn.Parameter(torch.zeros(ROWS // size, WIDTH, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.up.T @ self.down @ self.gate.weight.T * self.gate.scale.sum()


def rank_of(seed: int, rank: int = 0, size: int = 1) -> Rank:
    """A rank without weights; ``seed`` is not used."""
    return Rank(rank, size)


def transposed_rank_of(seed: int) -> Rank:
    """A rank that is alone, whose computed matrix lies in memory as kernels of FP8 read theirs."""
    made = Rank(0, 1)
    made.gate.weight = torch.nn.Parameter(torch.zeros(WIDTH, GATES, dtype=torch.bfloat16).T)
    return made


def strided_rank_of(seed: int) -> Rank:
    """A rank that is alone, whose computed matrix is every other column of another."""
    made = Rank(0, 1)
    made.gate.weight = torch.nn.Parameter(torch.zeros(GATES, 2 * WIDTH, dtype=torch.bfloat16)[:, ::2])
    return made


def served_of(tensors: dict[str, torch.Tensor], rank: int = 0, size: int = 1) -> dict[str, torch.Tensor]:
    """What a rank serves of a version."""
    rows = {name: tensors[name].chunk(size)[rank] for name in ("up", "gate.weight", "down")}
    return {**rows, "gate.weight": rows["gate.weight"].exp(), "gate.scale": tensors["gate.scale"].bfloat16()}


def loader(module: Rank) -> Loader:
    """Slices the rows of one rank out of whole tensors, computes one and converts another."""

    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        with torch.no_grad():
            for name, tensor in pairs:
                if name != "gate.scale":
                    tensor = tensor.chunk(module.size)[module.rank]
                module.get_parameter(name).copy_(tensor.exp() if name == "gate.weight" else tensor)

    return load


def weights_of(seed: int) -> dict[str, torch.Tensor]:
    """A checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    found = {"up": (ROWS, WIDTH), "gate.weight": (GATES, WIDTH), "gate.scale": (GATES,), "down": (ROWS, WIDTH)}
    made = {name: torch.randn(shape, generator=generator) for name, shape in found.items()}
    return {name: tensor if name == "gate.scale" else tensor.bfloat16() for name, tensor in made.items()}


def mostly_computed(module: Rank) -> Loader:
    """A loader that computes most of the parameters of a rank that is alone."""

    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        with torch.no_grad():
            for name, tensor in pairs:
                module.get_parameter(name).copy_(tensor if name == "down" else tensor.exp())

    return load
