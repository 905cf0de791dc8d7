"""One update by replaying what the model's loader does."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping

import torch

from ckpt_transport import LoadedBucket
from ckpt_transport.errors import RecordingError
from ckpt_transport.replay import Replay
from ckpt_transport_vllm import load_format
from ckpt_transport_vllm.layerwise import LayerwiseReload, waits_for_the_end
from ckpt_transport_vllm.loading import Loading
from ckpt_transport_vllm.recorded import Recorded, Way
from ckpt_transport_vllm.target import Target


class Replaying:
    """Brings one version in.

    Modules are written in place, or staged and processed as soon as all of their weights are there. What only the
    loader can load goes through vLLM's layerwise reload beside that.

    Args:
        target: the model.
        recorded: what is known of its loader.
    """

    def __init__(self, target: Target, recorded: Recorded) -> None:
        self._target, self._recorded = target, recorded
        self._modules = dict(target.model.named_modules())
        self._deferred = [module for module in self._modules.values() if waits_for_the_end(module)]
        self._tensors: dict[int, torch.Tensor] = {}
        self._replay = Replay(recorded.scripts, self._tensors)
        self._left_bytes = Counter(recorded.bytes_of)
        self._left_programs = {name: set(numbers) for name, numbers in recorded.programs_of.items()}
        self._ways = dict(recorded.ways)
        self._staged: set[str] = set()
        self._done: set[str] = set()
        self._used: set[object] = set()
        self._seconds = self._processing = 0.0
        self._loading: Loading | None = None

    def begin(self) -> None:
        """Lay hold of what is written in place, and prepare what is not."""
        began = time.perf_counter()
        layout = self._recorded.layout
        for name, way in self._ways.items():
            if way is Way.IN_PLACE:
                own = load_format.tensors_of(self._modules[name])
                for number in self._recorded.targets_of[name]:
                    short = layout.targets[number].name.rpartition(".")[2]
                    self._tensors[number] = own[short].detach()
        reload = LayerwiseReload(self._target, [*self._taking(Way.LOADER), *self._deferred], self._taking(Way.STAGED))
        reload.begin()
        self._loading = Loading(reload, self._recorded.left)
        self._processing += time.perf_counter() - began

    def load(self, bucket: LoadedBucket) -> None:
        """Bring one bucket in."""
        began = time.perf_counter()
        with torch.no_grad():
            act = self._recorded.act(bucket.key, bucket.places())
            self._used.add(bucket.key)
            for name in act.modules - self._staged:
                if self._ways[name] is Way.STAGED:
                    self._stage(name)
            self._by_loader(bucket, {layout_part.source for layout_part in act.script.loaded})
            written = self._replay.run(act.script, bucket.raw, lasting=bucket.lasting)
            self._seconds += time.perf_counter() - began
            self._account(written.copied, set(written.programs))

    def finish(self) -> None:
        """All is in.

        Raises:
            RecordingError: a module has not got all of its weights.
        """
        assert self._loading is not None
        began = time.perf_counter()
        self._replay.finish()
        with torch.no_grad():
            for name in self._ways:
                if self._ways[name] is not Way.LOADER and name not in self._done:
                    self._check_complete(name)
            self._replay.fill(
                {
                    number
                    for name, way in self._ways.items()
                    if way is Way.IN_PLACE
                    for number in self._recorded.targets_of[name]
                }
            )
            self._loading.finish(complete=False)
        for key in self._recorded.acts.keys() - self._used:
            del self._recorded.acts[key]
        self._processing += time.perf_counter() - began

    def told(self) -> str:
        """What was done, in words."""
        recorded = self._recorded
        moves = sum(len(act.script.moves) for act in recorded.acts.values())
        loader = f"; the loader took {recorded.loading:.3f} s" if recorded.loading else ""
        return (
            f"replayed in {self._seconds:.3f} s ({len(recorded.layout.copies)} copies in {moves}){loader}; "
            f"processing took {self._processing:.3f} s; "
            f"{recorded.summary()}"
        )

    def restore(self) -> None:
        """Put parameters back where they were, whatever is in them."""
        self._tensors.clear()
        if self._loading is not None:
            self._loading.restore()
        load_format.put_back(self._target.model)

    # -- modules ------------------------------------------------------------------------------------------------------

    def _taking(self, way: Way) -> list[torch.nn.Module]:
        return [self._modules[name] for name, taken in self._ways.items() if taken is way]

    def _stage(self, name: str) -> None:
        module = self._modules[name]
        staged = [self._modules[each] for each in self._staged - self._done]
        others = [*staged, *self._taking(Way.LOADER), *self._deferred]
        before = load_format.tensors_of(module)
        tensors = load_format.stage(self._target, module, others)
        self._staged.add(name)
        gaps = {gap.target for gap in self._recorded.layout.gaps}
        for number in self._recorded.targets_of[name]:
            short = self._recorded.layout.targets[number].name.rpartition(".")[2]
            if short not in tensors:
                continue
            self._tensors[number] = tensor = tensors[short].detach()
            if number in gaps and tensor is not before.get(short):
                _take_over(tensor, before.get(short))

    def _account(self, copied: Mapping[int, int], programs: set[int]) -> None:
        reached = set()
        for target, nbytes in copied.items():
            name = self._recorded.module_of[target]
            self._left_bytes[name] -= nbytes
            reached.add(name)
        for number in programs:
            for target in self._recorded.layout.programs[number].targets:
                name = self._recorded.module_of[target]
                self._left_programs[name].discard(number)
                reached.add(name)
        self._end(reached)

    def _end(self, names: Iterable[str]) -> None:
        """See which of these modules have all of their weights."""
        for name in names:
            if name in self._done or self._lacks(name):
                continue
            if self._ways[name] is Way.STAGED:
                self._replay.fill(self._recorded.targets_of[name])
                self._complete(name)
                for number in self._recorded.targets_of[name]:
                    self._tensors.pop(number, None)
            self._done.add(name)

    def _lacks(self, name: str) -> bool:
        """Whether something has not come that goes into this module."""
        return bool(self._left_bytes[name] or self._left_programs.get(name))

    def _complete(self, name: str) -> None:
        """A staged module has all of its weights."""
        began = time.perf_counter()
        load_format.process(self._target, self._modules[name])
        self._processing += time.perf_counter() - began

    def _check_complete(self, name: str) -> None:
        if self._lacks(name):
            raise RecordingError(f"{name} has not got all of its weights")

    def _by_loader(self, bucket: LoadedBucket, sources: set[int]) -> None:
        if sources:
            assert self._loading is not None
            names = {self._recorded.layout.sources[number].name for number in sources}
            self._loading.load([piece for piece in bucket if piece.spec.name in names])


def _take_over(tensor: torch.Tensor, before: torch.Tensor | None) -> None:
    """What nothing writes stays as it was, where kernels read weights in this form; else it is zero."""
    if before is not None and (before.shape, before.dtype) == (tensor.shape, tensor.dtype):
        tensor.copy_(before)
    else:
        tensor.zero_()
