"""Brings one version in by replaying what the model's loader does."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import torch

from ckpt_transport import LoadedBucket
from ckpt_transport.spi import BucketCopyPlan, Landing, LoadPass, Replay
from ckpt_transport_vllm import load_format
from ckpt_transport_vllm.layerwise import LayerwisePass
from ckpt_transport_vllm.recorded_model import ApplyMode, RecordedModel
from ckpt_transport_vllm.unloaded_attention import process_unloaded
from ckpt_transport_vllm.updated_model import UpdatedModel


class ModelReplayPass(LoadPass):
    """The replay loads, module by module.

    Modules are written in place, or staged and processed as soon as all of their weights are there. What only the
    loader can load goes through vLLM's layerwise reload beside that.

    Args:
        target: the model.
        recorded: what is known of its loader.
    """

    def __init__(self, target: UpdatedModel, recorded: RecordedModel) -> None:
        self._target, self._recorded = target, recorded
        self._modes = self._modes_now()
        self._modules = dict(recorded.tree.modules)
        self._attention = self._unloaded_attention()
        self._tensors: dict[int, torch.Tensor] = {}
        self._replay = Replay(recorded.plans, self._tensors)
        self._unstaged = {target for name in self._names(ApplyMode.STAGED) for target in recorded.targets_of[name]}
        self._gaps = {gap.target for gap in recorded.layout.gaps}
        self._staged: set[str] = set()
        self._done: set[str] = set()
        self._seconds = self._processing = 0.0
        self._by_layers = self._reload()

    def begin(self) -> None:
        """Look up what is written in place, and prepare what is not."""
        began = time.perf_counter()
        for name in self._names(ApplyMode.IN_PLACE):
            own = self._written_in_place(name)
            for number, short in self._targets(name):
                self._tensors[number] = own[short].detach()
        self._by_layers.begin()
        self._processing += time.perf_counter() - began

    def load(self, bucket: LoadedBucket) -> None:
        began = time.perf_counter()
        with torch.no_grad():
            plan = self._plan(bucket)
            self._by_loader(bucket, {part.source for part in plan.loaded})
            written = self._replay.run(plan, bucket)
            self._seconds += time.perf_counter() - began
            self._complete({self._recorded.module_of[target] for target in written})

    def landing(self, bucket: LoadedBucket) -> Landing | None:
        with torch.no_grad():
            plan = self._plan(bucket)
            return None if plan.loaded else self._replay.landing(plan)

    def landed(self, bucket: LoadedBucket) -> None:
        began = time.perf_counter()
        with torch.no_grad():
            written = self._replay.landed(self._recorded.plans.of(bucket))
            self._seconds += time.perf_counter() - began
            self._complete({self._recorded.module_of[target] for target in written})

    def _plan(self, bucket: LoadedBucket) -> BucketCopyPlan:
        """What is done with a bucket; what it reaches is there to be written."""
        plan = self._recorded.plans.of(bucket)
        for name in {self._recorded.module_of[number] for number in plan.targets & self._unstaged}:
            self._stage(name)
        return plan

    def finish(self) -> str:
        began = time.perf_counter()
        self._replay.finish()
        with torch.no_grad():
            in_place = self._names(ApplyMode.IN_PLACE)
            self._replay.fill({number for name in in_place for number in self._recorded.targets_of[name]})
            self._by_layers.finish()
            process_unloaded(self._target, self._attention)
        self._recorded.plans.forget_unused()
        self._processing += time.perf_counter() - began
        return self._in_words()

    def restore(self) -> None:
        """Put parameters back where they were, whatever is in them."""
        self._tensors.clear()
        self._by_layers.restore()

    def _in_words(self) -> str:
        recorded = self._recorded
        steps = f"{len(recorded.layout.copies)} copies in {recorded.plans.copy_count}"
        loader = f"; the loader took {recorded.loader_seconds:.3f} s" if recorded.loader_seconds else ""
        return (
            f"replayed in {self._seconds:.3f} s ({steps}){loader}; processing took {self._processing:.3f} s; "
            f"{recorded.summary()}"
        )

    def _reload(self) -> LayerwisePass:
        """The pass of what only the loader can load."""
        attention = [] if self._attention else self._recorded.tree.attention
        reloaded, staged = [*self._taking(ApplyMode.LOADER), *attention], self._taking(ApplyMode.STAGED)
        left = self._recorded.left_to_loader
        return LayerwisePass(self._target, left, modules=reloaded, beside=staged)

    def _unloaded_attention(self) -> Sequence[torch.nn.Module]:
        """Modules of attention, where it is known that nothing is loaded into them; vLLM processes them at the end."""
        attention = self._recorded.tree.attention
        loaded = {self._modules[name] for name in self._modes}
        return [] if self._recorded.left_to_loader or not loaded.isdisjoint(attention) else attention

    # -- modules ------------------------------------------------------------------------------------------------------

    def _modes_now(self) -> dict[str, ApplyMode]:
        """How each module is loaded in this pass."""
        return dict(self._recorded.modes)

    def _names(self, mode: ApplyMode) -> list[str]:
        return [name for name, each in self._modes.items() if each is mode]

    def _taking(self, mode: ApplyMode) -> list[torch.nn.Module]:
        return [self._modules[name] for name in self._names(mode)]

    def _targets(self, name: str) -> list[tuple[int, str]]:
        """The targets of a module, and what each is called within it."""
        recorded = self._recorded
        return [(number, recorded.short_name_of(number)) for number in recorded.targets_of[name]]

    def _written_in_place(self, name: str) -> load_format.Tensors:
        """Where the tensors of a module are written, by name within it."""
        return load_format.tensors_of(self._modules[name])

    def _stage(self, name: str) -> None:
        module = self._modules[name]
        before = load_format.tensors_of(module)
        tensors = load_format.stage(self._target, module, self._others() if any(module.children()) else ())
        self._staged.add(name)
        self._unstaged.difference_update(self._recorded.targets_of[name])
        for number, short in self._targets(name):
            if short not in tensors:
                continue
            self._tensors[number] = tensor = tensors[short].detach()
            if number in self._gaps and tensor is not before.get(short):
                _keep_unwritten(tensor, before.get(short))

    def _others(self) -> list[torch.nn.Module]:
        """Modules that are staged just now, or will be."""
        return [*(self._modules[each] for each in self._staged - self._done), *self._taking(ApplyMode.LOADER)]

    def _complete(self, names: Iterable[str]) -> None:
        """Process those of these modules that have all of their weights."""
        for name in names:
            if name in self._done or self._lacks(name):
                continue
            if self._modes[name] is ApplyMode.STAGED:
                self._replay.fill(self._recorded.targets_of[name])
                self._process(name)
                for number in self._recorded.targets_of[name]:
                    self._tensors.pop(number, None)
            self._done.add(name)

    def _lacks(self, name: str) -> bool:
        """Whether something has not come that goes into this module."""
        return self._replay.lacks(self._recorded.targets_of[name])

    def _process(self, name: str) -> None:
        """A staged module has all of its weights: have vLLM process it."""
        began = time.perf_counter()
        load_format.process(self._target, self._modules[name])
        self._processing += time.perf_counter() - began

    def _by_loader(self, bucket: LoadedBucket, sources: set[int]) -> None:
        """Give the loader what of a bucket only the loader can load."""
        if sources:
            names = {self._recorded.layout.sources[number].name for number in sources}
            self._by_layers.load([piece for piece in bucket if piece.spec.name in names])


def _keep_unwritten(tensor: torch.Tensor, before: torch.Tensor | None) -> None:
    """What nothing writes stays as it was, where kernels read weights in this form; else it is zero."""
    if before is not None and (before.shape, before.dtype) == (tensor.shape, tensor.dtype):
        tensor.copy_(before)
    else:
        tensor.zero_()
