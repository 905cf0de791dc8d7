"""Brings one version in beside what is served, while forward passes run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ckpt_transport import LoadedPiece, RecordingError
from ckpt_transport_vllm import load_format
from ckpt_transport_vllm.layerwise import LayerwisePass
from ckpt_transport_vllm.recorded_model import ApplyMode, RecordedModel
from ckpt_transport_vllm.replay_pass import ModelReplayPass
from ckpt_transport_vllm.staged_version import StagedVersion
from ckpt_transport_vllm.updated_model import UpdatedModel


class ModelStagedPass(ModelReplayPass):
    """The replay loads a staged version: no tensor and no module of the model is touched.

    Args:
        target: the model.
        recorded: what is known of its loader; it names nothing that keeps a version from being staged.
        staged: where the version goes.
    """

    def __init__(self, target: UpdatedModel, recorded: RecordedModel, staged: StagedVersion) -> None:
        super().__init__(target, recorded)
        self._version = staged
        self._modules.update(staged.modules)

    def _reload(self) -> LayerwisePass:
        return _NothingToReload(self._target)

    def _unloaded_attention(self) -> Sequence[torch.nn.Module]:
        return []

    def _taking(self, mode: ApplyMode) -> list[torch.nn.Module]:
        return []

    def _written_in_place(self, name: str) -> load_format.Tensors:
        own = super()._written_in_place(name)
        return {short: self._version.tensors.get(f"{name}.{short}", tensor) for short, tensor in own.items()}


class _NothingToReload(LayerwisePass):
    """A pass without anything that only the loader can load: the model is not touched."""

    def __init__(self, target: UpdatedModel) -> None:
        super().__init__(target, (), modules=())

    def load(self, bucket: Sequence[LoadedPiece]) -> None:
        raise RecordingError(f"{bucket[0].spec.name} comes, which only the loader can load, and it does so in place")

    def finish(self) -> str:
        return ""

    def restore(self) -> None:
        pass
