"""Brings one version in by loader and replay at once, to see that both do the same."""

from __future__ import annotations

import time

import torch

from ckpt_transport import LoadedBucket
from ckpt_transport.spi import Landing, TensorAssembler
from ckpt_transport_vllm import load_format
from ckpt_transport_vllm.attributes import Attributes
from ckpt_transport_vllm.processing import process_watched
from ckpt_transport_vllm.recorded_model import ApplyMode, RecordedModel
from ckpt_transport_vllm.replay_pass import ModelReplayPass
from ckpt_transport_vllm.updated_model import UpdatedModel


class ModelComparedPass(ModelReplayPass):
    """The model's own loaders load, and the replay loads into other memory.

    Every module is staged twice: the loader writes what the module has, and the replay a copy that begins with each bit
    inverted. A module whose two copies do not end up equal is left to the loader from the next update on. Of the others
    it is seen whether vLLM's processing does anything to them; when not, they can be written in place.
    """

    def __init__(self, target: UpdatedModel, recorded: RecordedModel) -> None:
        super().__init__(target, recorded)
        self._found: dict[str, ApplyMode] = {}
        self._failed: dict[str, str] = {}
        self._unexchangeable: dict[str, str] = {}
        self._loader_seconds = 0.0
        self._assembler = TensorAssembler()
        named = recorded.layout.sources
        self._to_load = {name: {named[each].name for each in of} for name, of in recorded.sources_of.items()}

    def load(self, bucket: LoadedBucket) -> None:
        super().load(bucket)
        with torch.no_grad():
            self._complete(self._staged - self._done)

    def landing(self, bucket: LoadedBucket) -> Landing | None:
        return None

    def finish(self) -> str:
        super().finish()
        self._recorded.loader_seconds = self._loader_seconds
        self._recorded.settle(self._found, self._failed, self._unexchangeable)
        same = "found to be the same" if not self._failed else f"{len(self._failed)} modules found to differ"
        return (
            f"recorded in {self._recorded.recording_seconds:.3f} s, loaded by the loader in "
            f"{self._loader_seconds:.3f} s, replayed and {same}; {self._recorded.summary()}"
        )

    def _modes_now(self) -> dict[str, ApplyMode]:
        modes = super()._modes_now()
        return {name: ApplyMode.STAGED if mode is ApplyMode.IN_PLACE else mode for name, mode in modes.items()}

    def _stage(self, name: str) -> None:
        super()._stage(name)
        for number in self._recorded.targets_of[name]:
            if number in self._tensors:
                loaded = self._tensors[number]
                copy = torch.empty_strided(loaded.shape, loaded.stride(), dtype=loaded.dtype, device=loaded.device)
                copy.copy_(loaded)
                _raw(copy).bitwise_not_()
                self._tensors[number] = copy

    def _by_loader(self, bucket: LoadedBucket, sources: set[int]) -> None:
        began = time.perf_counter()
        names = {self._recorded.layout.sources[number].name for number in sources}
        super()._by_loader(bucket, sources)
        pieces = self._assembler.whole(piece for piece in bucket if piece.spec.name not in names)
        tensors = {piece.spec.name: piece.tensor() for piece in pieces}
        if tensors:
            self._target.load(tensors.items())
        for left in self._to_load.values():
            left.difference_update(tensors)
        self._loader_seconds += time.perf_counter() - began

    def _lacks(self, name: str) -> bool:
        return super()._lacks(name) or bool(self._to_load.get(name))

    def _process(self, name: str) -> None:
        difference = self._difference(name)
        if difference:
            self._failed[name] = difference
        else:
            for number in self._recorded.targets_of[name]:
                self._tensors.pop(number, None)
        before = Attributes(self._modules[name])
        reason = process_watched(self._target, self._modules[name])
        self._unexchangeable[name] = before.why_not_exchanged()
        self._found[name] = ApplyMode.STAGED if reason else ApplyMode.IN_PLACE
        self._recorded.reasons[name] = reason

    def _difference(self, name: str) -> str:
        """What the replay has left otherwise than the loader; empty when nothing."""
        gaps = {gap.target: gap.nbytes for gap in self._recorded.layout.gaps}
        own = load_format.tensors_of(self._modules[name])
        for number, short in self._targets(name):
            if number not in self._tensors:
                continue
            differing = _raw(own[short].detach()) ^ _raw(self._tensors[number])
            wrong, untouched = int(differing.count_nonzero()), int((differing == 0xFF).count_nonzero())
            if wrong != gaps.get(number, 0) or untouched != wrong:
                return f"{short} was not replayed as it was loaded"
        return ""


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a tensor as bytes, in a view."""
    return torch.as_strided(tensor, (tensor.numel(),), (1,)).view(torch.uint8)
