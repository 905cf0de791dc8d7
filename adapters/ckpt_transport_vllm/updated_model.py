"""The model that an update goes into: it is the one that is served, or the draft model beside it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ckpt_transport import CheckpointError
from ckpt_transport.spi import TensorSpec, specs_of


@dataclass(frozen=True, slots=True)
class UpdatedModel:
    """A model of vLLM, with what describes it.

    Attributes:
        model: vLLM's module.
        model_config: vLLM's configuration of it.
        vllm_config: the configuration of the whole engine.
    """

    model: torch.nn.Module
    model_config: Any
    vllm_config: Any

    def configured(self) -> AbstractContextManager[None]:
        """Within the context vLLM works with the configuration of this engine."""
        from vllm.config import set_current_vllm_config

        context: AbstractContextManager[None] = set_current_vllm_config(self.vllm_config)
        return context

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> set[str] | None:
        """Give whole tensors to the model's own loader. Returns the names of what it has loaded, where it says that."""
        model: Any = self.model
        with self.configured(), torch.no_grad():
            loaded = model.load_weights(tensors)
        return None if loaded is None else set(loaded)

    @property
    def checkpoint(self) -> Path | None:
        """The directory the model came from, if it is on this machine."""
        name = str(self.model_config.model)
        if Path(name).is_dir():
            return Path(name)
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(name, "config.json", revision=self.model_config.revision)
        return Path(config).parent if isinstance(config, str) else None

    def expects(self) -> tuple[TensorSpec, ...] | None:
        """The tensors of the checkpoint that the model came from: what its loader was made for.

        None when there is no such checkpoint here, as with a model that was started with random weights.
        """
        directory = self.checkpoint
        if directory is None:
            return None
        try:
            return specs_of(directory)
        except CheckpointError:
            return None
