"""Knows the modules of a model by their names, which stay the same between versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch


class ModuleTree:
    """The modules of a model. They are walked through again only where one has come, gone, or taken another's place.

    Args:
        model: that has them, and is one of them.
        attends: whether a module is one of attention.
    """

    def __init__(self, model: torch.nn.Module, attends: Callable[[torch.nn.Module], bool]) -> None:
        self._model, self._attends = model, attends
        self._walk()

    @property
    def modules(self) -> Mapping[str, torch.nn.Module]:
        """All of them, as they are now, by name."""
        self._look()
        return self._modules

    @property
    def attention(self) -> Sequence[torch.nn.Module]:
        """Those of attention."""
        self._look()
        return self._attention

    def _look(self) -> None:
        if self._inside != [module._modules for module in self._modules.values()]:
            self._walk()

    def _walk(self) -> None:
        self._modules = dict(self._model.named_modules())
        self._inside = [dict(module._modules) for module in self._modules.values()]
        self._attention = [module for module in self._modules.values() if self._attends(module)]
