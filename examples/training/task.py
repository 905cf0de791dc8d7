"""What the demonstration's trainer teaches: a model that is nearly right is fine-tuned on a few prompts.

The answers that are wanted are near those that it gives, so that steps at the learning rate of a fine-tuning, which
change one element of BF16 in twenty, take most of the loss away.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from examples.trainers.model import WIDTH, model

PROMPTS = 8
DISTANCE = 0.005
"""Between an answer and the one that is wanted, where those of the model are about 0.3."""


def loss_of(module: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """How far a model is from the answers that are wanted."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randn(PROMPTS, WIDTH, generator=generator)
    with torch.no_grad():
        wanted = model()(prompts) + DISTANCE * torch.randn(PROMPTS, WIDTH, generator=generator)
    return torch.nn.functional.mse_loss(module(prompts), wanted)
