"""The model that a SGLang scheduler serves."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from ckpt_transport import CheckpointError, EngineError
from ckpt_transport.spi import TensorSpec, from_directory

UNNAMED = "default"
"""What SGLang calls weights that nobody has named."""


class ServedModel:
    """A model of SGLang, with what describes it.

    Args:
        scheduler: SGLang's; it has the model, on one rank.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._runner = scheduler.tp_worker.model_runner
        self.rank = torch.distributed.get_rank(scheduler.weight_updater.tp_cpu_group)

    @property
    def module(self) -> torch.nn.Module:
        found: torch.nn.Module = self._runner.model
        return found

    @property
    def config(self) -> Any:
        """SGLang's configuration of the model."""
        return self._runner.model_config

    @property
    def settings(self) -> Any:
        """What SGLang was started with, and has decided by itself."""
        return self._scheduler.server_args

    def described(self) -> dict[str, str]:
        """See :meth:`ckpt_transport_sglang.updatable.Updatable.describe`."""
        from sglang.srt.runtime_context import get_serving

        version = str(get_serving().weight_version)
        return {
            "world_size": str(self.settings.tp_size * self.settings.pp_size),
            "version": "" if version == UNNAMED else version,
            "paused": "yes" if self._scheduler._engine_paused else "",
        }

    @property
    def absent(self) -> bool:
        """Whether its weights have been given back, by ``/release_memory_occupation``."""
        return "weights" in self._scheduler.weight_updater.offload_tags

    @property
    def keeps_outside(self) -> bool:
        """Whether keys and values go to a store that no flush empties, as of ``PUT /hicache/storage-backend``."""
        return bool(self._scheduler.enable_hicache_storage)

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load by the model's own loader, whole tensors of a checkpoint."""
        model: Any = self.module
        model.load_weights(tensors)

    def drop_caches(self) -> None:
        """Drop what was computed of requests, which no route of SGLang does while one runs.

        Running requests are taken back to where requests wait. They keep their tokens, and what was computed of these
        is computed again. What is served and who has paused it stay as they are.

        Raises:
            EngineError: SGLang has kept something; its log says what.
        """
        from sglang.srt.managers.io_struct import ContinueGenerationReqInput, PauseGenerationReqInput

        paused = self._scheduler._engine_paused
        self._scheduler.pause_generation(PauseGenerationReqInput(mode="retract"))
        dropped = self._scheduler.flush_cache(empty_cache=False)
        if not paused:
            self._scheduler.continue_generation(ContinueGenerationReqInput(torch_empty_cache=False))
        if not dropped:
            raise EngineError("what was computed by old weights could not be dropped, and would be used on")

    def name(self, version: str) -> None:
        """Name what is served from now on. Requests under way keep the names of what they were answered by before."""
        self._scheduler.record_weight_version_change(new_version=version)

    def forget_images(self) -> None:
        """Drop what was computed of images by old weights, which no route of SGLang does; no batch may run."""
        from sglang.srt.managers import mm_schedule

        if mm_schedule.embedding_cache is not None:
            mm_schedule.embedding_cache.clear()

    @cached_property
    def _expected(self) -> tuple[TensorSpec, ...] | None:
        directory = Path(str(self.config.model_path))
        if not directory.is_dir() or self.settings.load_format == "dummy":
            return None
        try:
            return tuple(entry.spec for file in from_directory(directory) for entry in file.tensors)
        except CheckpointError:
            return None

    def expects(self) -> tuple[TensorSpec, ...] | None:
        """The tensors of the checkpoint that the model came from. Once read, its files are not needed any more.

        None when there is no such checkpoint here, as with a model that was started with random weights.
        """
        return self._expected
