"""Keeps tensors where kernels and CUDA graphs look for them, though a reload makes new ones.

vLLM's layerwise reload keeps the storage of parameters and buffers. Two kinds of tensors lie beside them: what
attention derives from its weights and keeps as plain attributes (``W_UV`` and ``W_UK_T`` of MLA, where vLLM does not
copy in place), and the scales in the configuration that the kernel of a mixture of experts was made with. A graph that
was captured goes on reading the old ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

DESCRIPTIONS = ("_a1", "_a2", "_w1", "_w2")
"""Parts of a ``FusedMoEQuantConfig`` that hold tensors."""


class GraphTensors:
    """Where such tensors of some modules are now, to have new values brought there.

    Args:
        modules: that are loaded; their children are looked at, too.
        attends: whether a module is one of attention.
    """

    def __init__(self, modules: Iterable[torch.nn.Module], attends: Callable[[torch.nn.Module], bool]) -> None:
        self._modules = list(dict.fromkeys(each for module in modules for each in module.modules()))
        self._attends = attends
        self._held = {key: getattr(owner, key[-1]) for key, owner in self._tensors()}

    def bring_back(self) -> None:
        """Copy what has a new address to the old one, and have its owner refer to that."""
        with torch.no_grad():
            for key, owner in list(self._tensors()):
                held, now = self._held.get(key), getattr(owner, key[-1])
                if held is not None and held is not now and are_alike(held, now):
                    held.copy_(now)
                    setattr(owner, key[-1], held)

    def _tensors(self) -> Iterator[tuple[tuple[torch.nn.Module, str, str], Any]]:
        """What identifies each tensor, its attribute last, and the object that has it."""
        for module in self._modules:
            if self._attends(module):
                yield from (((module, "", key), module) for key in _tensors_of(module))
            yield from (((module, part, key), description) for (part, key), description in described(module))


def described(module: torch.nn.Module) -> Iterator[tuple[tuple[str, str], Any]]:
    """What the configuration of its experts' kernel has of tensors: part and attribute, and the object that has it."""
    config = getattr(getattr(module, "quant_method", None), "moe_quant_config", None)
    for part in DESCRIPTIONS:
        description = getattr(config, part, None)
        if description is not None:
            yield from (((part, key), description) for key in _tensors_of(description))


def are_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether one can be copied to the other, bit by bit."""
    return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)


def _tensors_of(owner: Any) -> list[str]:
    return [key for key, value in vars(owner).items() if isinstance(value, torch.Tensor)]
