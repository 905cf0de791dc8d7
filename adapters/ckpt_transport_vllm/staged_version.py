"""A version of a vLLM model lies beside the one that is served, until both are exchanged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch

from ckpt_transport.spi import MakeShadows, StagingArea, uninterrupted
from ckpt_transport_vllm.recorded_model import ApplyMode, RecordedModel
from ckpt_transport_vllm.shadow_module import ShadowModule


class StagedVersion:
    """Holds what a version of a model changes.

    Args:
        recorded: what is known of its loader.
        make: makes the memory.

    Attributes:
        area: where its tensors lie.
        modules: shadows of the modules that vLLM's processing does something to, by name.

    Raises:
        BudgetError: there is no memory for it.
    """

    def __init__(self, recorded: RecordedModel, make: MakeShadows) -> None:
        self._recorded = recorded
        self.area = StagingArea(recorded.served(), make)
        self._shadows: dict[str, ShadowModule] = {}

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.area.device

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        return self.area.nbytes

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Where kernels will read, by name in the model."""
        return self.area.tensors

    @property
    def modules(self) -> Mapping[str, torch.nn.Module]:
        return {name: shadow.module for name, shadow in self._shadows.items()}

    def is_for(self, recorded: RecordedModel | None) -> bool:
        """Whether it lies beside what is served now."""
        return recorded is self._recorded and self.area.is_for(self._recorded.served())

    def renew(self) -> None:
        """Forget what is in it, because another version comes. What no version writes is copied from the model."""
        recorded = self._recorded
        if unwritten := {recorded.layout.targets[gap.target].name for gap in recorded.layout.gaps}:
            served = recorded.served()
            for name in unwritten & served.keys():
                self.tensors[name].copy_(served[name])
        modules, tensors = recorded.tree.modules, self._by_module()
        self._shadows = {
            name: ShadowModule(modules[name], tensors[name])
            for name, mode in recorded.modes.items()
            if mode is ApplyMode.STAGED
        }

    def exchange(self) -> None:
        """Exchange it and what is served, all or nothing; no forward pass may run.

        Raises:
            PlanMismatchError: the model has other tensors than it was made for; nothing was changed.
        """
        served = self._recorded.served()

        def exchange_all() -> None:
            self.area.exchange(served)
            for shadow in self._shadows.values():
                shadow.exchange()

        uninterrupted(exchange_all)

    def _by_module(self) -> Mapping[str, Mapping[str, torch.Tensor]]:
        """The tensors of each module, by name within it."""
        found: defaultdict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        for key, tensor in self.tensors.items():
            name, _, short = key.rpartition(".")
            found[name][short] = tensor
        return found
