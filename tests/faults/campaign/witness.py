"""A module whose forward pass shows which weights it saw, byte for byte."""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Mapping

import torch

LAYERS, WIDTH = 24, 256


class Witness(torch.nn.Sequential):
    """Linear layers of random weights. A pass returns some values of every parameter, exactly as they are.

    So a pass that sees two versions, or half of one, returns what no version returns.
    """

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        super().__init__(*[torch.nn.Linear(WIDTH, WIDTH, device="meta") for _ in range(LAYERS)])
        self.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=generator))

    def forward(self, request: torch.Tensor) -> torch.Tensor:
        flat = [parameter.detach().flatten() for parameter in self.parameters()]
        return torch.cat([values[:: max(values.numel() // 3, 1)] for values in flat])


def passed(module: Witness) -> bytes:
    """What one forward pass returns."""
    values: torch.Tensor = module(torch.zeros(1))
    return values.numpy().tobytes()


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of every byte of every tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(struct.pack("q", tensor.nbytes) + name.encode() + tensor.detach().numpy().tobytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=64)
def expected(seed: int) -> tuple[str, bytes]:
    """The fingerprint of the weights of that seed, and what a forward pass with them returns."""
    module = Witness(seed)
    return fingerprint(module.state_dict()), passed(module)
