"""Brings the first version in by loader and replay at once, to see that both do the same."""

from __future__ import annotations

import time
from collections.abc import Collection

import torch

from ckpt_transport import LoadedBucket
from ckpt_transport.spi import Landing, TensorAssembler, inverted_copy, is_replayed_as_loaded
from ckpt_transport_vllm import load_format
from ckpt_transport_vllm.processing import Processing
from ckpt_transport_vllm.recorded_model import ApplyMode, RecordedModel
from ckpt_transport_vllm.replay_pass import ModelReplayPass
from ckpt_transport_vllm.updated_model import UpdatedModel


class ModelComparedPass(ModelReplayPass):
    """The model's own loaders load, and the replay loads into other memory.

    Every module is staged twice: the loader writes what the module has, and the replay a copy that begins with each bit
    inverted. A module whose two copies do not end up equal is left to the loader from the next update on. Of the others
    it is seen whether vLLM's processing does anything to them; when not, they can be written in place.

    Args:
        target, recorded: see :class:`ModelReplayPass`.
        proved: modules that are staged once, as the replay is known to leave in them what the loader leaves. Where
            these are all, the loader loads nothing.
    """

    def __init__(self, target: UpdatedModel, recorded: RecordedModel, proved: Collection[str]) -> None:
        super().__init__(target, recorded)
        self._compared = {name for name in self._names(ApplyMode.STAGED) if name not in proved}
        self._seen: dict[str, Processing] = {}
        self._failed: dict[str, str] = {}
        self._loader_seconds = 0.0
        self._assembler = TensorAssembler()
        named, given = recorded.layout.sources, self._given()
        self._given_names = {named[each].name for each in given}
        self._to_load = {name: {named[each].name for each in of & given} for name, of in recorded.sources_of.items()}

    def load(self, bucket: LoadedBucket) -> None:
        super().load(bucket)
        with torch.no_grad():
            self._complete(self._staged - self._done)

    def landing(self, bucket: LoadedBucket) -> Landing | None:
        return None

    def finish(self) -> str:
        super().finish()
        self._recorded.loader_seconds = self._loader_seconds
        self._recorded.settle(self._seen, self._failed)
        told = [f"recorded in {self._recorded.recording_seconds:.3f} s"]
        if self._compared:
            same = "found to be the same" if not self._failed else f"{len(self._failed)} modules found to differ"
            told += [f"loaded by the loader in {self._loader_seconds:.3f} s", f"replayed and {same}"]
        else:
            told.append(f"replayed in {self._seconds:.3f} s as it was rehearsed")
        return f"{', '.join(told)}; processing took {self._processing:.3f} s; {self._recorded.summary()}"

    def _given(self) -> set[int]:
        """The sources that the loader is given: those that modules are compared with, and those that nothing reads."""
        if not self._compared:
            return set()
        compared, read = (
            {source for name in names for source in self._recorded.sources_of[name]}
            for names in (self._compared, list(self._recorded.sources_of))
        )
        return compared.union(number for number in range(len(self._recorded.layout.sources)) if number not in read)

    def _modes_now(self) -> dict[str, ApplyMode]:
        modes = super()._modes_now()
        return {name: ApplyMode.STAGED if mode is ApplyMode.IN_PLACE else mode for name, mode in modes.items()}

    def _stage(self, name: str) -> None:
        super()._stage(name)
        if name in self._compared:
            for number in self._recorded.targets_of[name]:
                if number in self._tensors:
                    self._tensors[number] = inverted_copy(self._tensors[number])

    def _by_loader(self, bucket: LoadedBucket, sources: set[int]) -> None:
        began = time.perf_counter()
        names = {self._recorded.layout.sources[number].name for number in sources}
        super()._by_loader(bucket, sources)
        if not self._compared:
            return
        wanted = (piece for piece in bucket if piece.spec.name in self._given_names and piece.spec.name not in names)
        tensors = {piece.spec.name: piece.tensor() for piece in self._assembler.whole(wanted)}
        if tensors:
            self._target.load(tensors.items())
        for left in self._to_load.values():
            left.difference_update(tensors)
        self._loader_seconds += time.perf_counter() - began

    def _lacks(self, name: str) -> bool:
        return super()._lacks(name) or bool(self._to_load.get(name))

    def _process(self, name: str) -> None:
        difference = self._difference(name) if name in self._compared else ""
        if difference:
            self._failed[name] = difference
        else:
            for number in self._recorded.targets_of[name]:
                self._tensors.pop(number, None)
        began = time.perf_counter()
        self._seen[name] = Processing.of(self._target, self._modules[name])
        self._processing += time.perf_counter() - began

    def _difference(self, name: str) -> str:
        """What the replay has left otherwise than the loader; empty when nothing."""
        gaps = {gap.target: gap.nbytes for gap in self._recorded.layout.gaps}
        own = load_format.tensors_of(self._modules[name])
        for number, short in self._targets(name):
            if number not in self._tensors:
                continue
            if not is_replayed_as_loaded(own[short].detach(), self._tensors[number], gaps.get(number, 0)):
                return f"{short} was not replayed as it was loaded"
        return ""
