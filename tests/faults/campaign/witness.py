"""A module whose forward pass shows which weights it saw, byte for byte."""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterable, Mapping

import torch

from ckpt_transport_torch import Loader

LAYERS, WIDTH = 24, 256
OWN = 16
"""One of so many elements of a version is its own, and so is all that a pass shows; the others are in all versions."""


Half = int | None
"""Which half of each matrix an engine serves; None for all of it."""


class Witness(torch.nn.Sequential):
    """Linear layers of random weights. A pass returns some values of every parameter, exactly as they are.

    So a pass that sees two versions, or half of one, returns what no version returns.

    Args:
        seed: of the version.
        half: upper or lower rows of every second layer, left or right columns of the others.
    """

    def __init__(self, seed: int, half: Half = None) -> None:
        common, own = (torch.Generator().manual_seed(each) for each in (0, seed))
        super().__init__(*[torch.nn.Linear(WIDTH, WIDTH, device="meta") for _ in range(LAYERS)])
        self.to_empty(device="cpu")
        with torch.no_grad():
            for name, parameter in list(self.named_parameters()):
                parameter.copy_(torch.rand(parameter.shape, generator=common))
                part = parameter.view(-1)[::OWN]
                part.copy_(torch.rand(part.shape, generator=own))
                served = torch.nn.Parameter(half_of(name, parameter.detach(), half).clone())
                setattr(self.get_submodule(name.partition(".")[0]), name.partition(".")[2], served)

    def forward(self, request: torch.Tensor) -> torch.Tensor:
        return torch.cat([shown_of(parameter.detach().flatten()) for parameter in self.parameters()])


def half_of(name: str, tensor: torch.Tensor, half: Half) -> torch.Tensor:
    """What an engine serves of a tensor."""
    if half is None or tensor.dim() == 1:
        return tensor
    return tensor.chunk(2, dim=int(name.partition(".")[0]) % 2)[half]


def loader_of(module: Witness, half: Half) -> Loader:
    """Copies into a module what it serves of whole tensors."""

    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        with torch.no_grad():
            for name, tensor in pairs:
                module.get_parameter(name).copy_(half_of(name, tensor, half))

    return load


def shown_of(values: torch.Tensor) -> torch.Tensor:
    """Those that a pass shows: of each version its own."""
    return values[:: -(-values.numel() // (3 * OWN)) * OWN]


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
def expected(seed: int, half: Half = None) -> tuple[str, bytes]:
    """The fingerprint of the weights of that seed, or of a half, and what a forward pass with them returns."""
    module = Witness(seed, half)
    return fingerprint(module.state_dict()), passed(module)
