"""The recipes that were used last: a training loop asks for the same one at every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import eq
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from ckpt_transport.spi import describe
from ckpt_transport_fp8.devices import choose, numbered
from ckpt_transport_fp8.look import Look, look_at
from ckpt_transport_fp8.recipe import Recipe
from ckpt_transport_fp8.target import Target

MOST = 8
"""Recipes that are kept for a target, as long as it lives."""


class _Known(NamedTuple):
    names: tuple[str, ...]
    looks: Sequence[Look]
    device: torch.device
    recipe: Recipe

    def fits(self, names: tuple[str, ...], tensors: Mapping[str, torch.Tensor], device: torch.device) -> bool:
        """Whether it is for such weights. Nothing is kept of them, so that this costs no collection of garbage."""
        return (
            self.device == device and self.names == names and all(map(eq, self.looks, map(look_at, tensors.values())))
        )


_recent: WeakKeyDictionary[Target, tuple[_Known, ...]] = WeakKeyDictionary()
"""The last one used first."""


def recipe_for(tensors: Mapping[str, torch.Tensor], target: Target, device: torch.device | None) -> Recipe:
    """How what ``target`` wants is made of ``tensors``.

    Args:
        tensors: the weights.
        target: what they are made for.
        device: where elements are computed; None chooses.

    Raises:
        CheckpointError: as :func:`~ckpt_transport.checkpoint.copier.describe`.
        PlanMismatchError: as :meth:`~ckpt_transport_fp8.target.Target.wants`.
    """
    names, recent = tuple(tensors), _recent.get(target, ())
    device = choose(tensor.device for tensor in tensors.values()) if device is None else numbered(device)
    found = next((known for known in recent if known.fits(names, tensors, device)), None)
    if found is None:
        specs = describe(tensors)
        looks = [Look(*look_at(tensor)) for tensor in tensors.values()]
        wanted = [target.wants(spec, tensors.keys()) for spec in specs]
        found = _Known(names, looks, device, Recipe(looks, specs, wanted, device))
    _recent[target] = (found, *(known for known in recent if known is not found))[:MOST]
    return found.recipe
