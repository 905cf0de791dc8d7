"""What the examples train, and what is served elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import torch

WIDTH = 256


def model() -> torch.nn.Module:
    """The model, always with the same weights at first."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, WIDTH))


def loss_of(module: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """How far a model is from giving back what it is given."""
    inputs = torch.eye(WIDTH)
    return torch.nn.functional.mse_loss(module(inputs), inputs)
