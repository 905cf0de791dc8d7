"""Rehearses a first update while requests are answered.

Loader and replay load invented tensors into a likeness, and vLLM processes a copy of each module with what was loaded.
Where all of that shows what a first update would show, the first update is as later ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack

import torch

from ckpt_transport.spi import Rehearsal, SeenByPassesError, free_on, of_targets
from ckpt_transport_vllm import load_format
from ckpt_transport_vllm.detached_module import memory_nbytes
from ckpt_transport_vllm.layerwise import has_odd_attention_scales
from ckpt_transport_vllm.likeness import likeness_on_meta
from ckpt_transport_vllm.processing import Processing
from ckpt_transport_vllm.recorded_model import ApplyMode, RecordedModel
from ckpt_transport_vllm.rehearsed_processing import rehearse_processing
from ckpt_transport_vllm.sleeping import check_awake
from ckpt_transport_vllm.updated_model import UpdatedModel

TOGETHER_BYTES = 256 << 20
"""Of modules that are rehearsed at once, unless one has more."""
STEP = ""
"""What a step says that is told with the last."""
DIFFERS = "it was not replayed as it was loaded"
TOO_LITTLE = "too little memory is free"
ODD_SCALES = "it gives attention other scales"
"""What a first update does that a staged one does not."""


def rehearse(target: UpdatedModel, recorded: RecordedModel) -> Generator[str]:
    """Find out which modules are replayed as they are loaded, and what vLLM's processing does to each.

    What is not found out, the first update finds out.

    Nothing that is served is read or written, and forward passes run. Half of the memory that is free is left free.

    Args:
        target: the model.
        recorded: its loader, of which no version has come yet. It learns what was found out.

    Yields: each step in words, which only the last one has.
    """
    found = ModelRehearsal(target, recorded)
    try:
        with likeness_on_meta(target) as alike:
            for names in found.together():
                yield from found.rehearse(alike, names)
    except (Exception, SeenByPassesError) as error:
        found.left[f"{type(error).__name__}: {error}"] += len(found.waiting)
    finally:
        found.tell()
    yield found.in_words()


class ModelRehearsal:
    """What is known so far of the modules of a model.

    Args:
        target, recorded: see :func:`rehearse`.

    Attributes:
        waiting: modules that were not rehearsed yet.
        left: why modules are left to the first update, with how many.
    """

    def __init__(self, target: UpdatedModel, recorded: RecordedModel) -> None:
        self._target, self._recorded = target, recorded
        self.waiting = [name for name, mode in recorded.modes.items() if mode is not ApplyMode.LOADER]
        self.left: Counter[str] = Counter()
        self._proved: list[str] = []
        self._failed: dict[str, str] = {}
        self._seen: dict[str, Processing] = {}
        self._unseen: Counter[str] = Counter()
        self._device = next(target.model.parameters()).device

    def together(self) -> Iterator[list[str]]:
        """Modules that are rehearsed at once. What is computed for several modules is left to the first update."""
        several = {
            name
            for group in self._recorded.layout.op_groups
            if len(names := {self._recorded.module_of[target] for target in group.targets}) > 1
            for name in names
        }
        nbytes = Counter[str]()
        for copy in self._recorded.layout.copies:
            nbytes[self._recorded.module_of[copy.target]] += copy.nbytes
        together: list[str] = []
        for name in list(self.waiting):
            if name in several:
                self._leave([name], "computed together with other modules")
                continue
            if together and sum(nbytes[each] for each in together) + nbytes[name] > TOGETHER_BYTES:
                yield together
                together = []
            together.append(name)
        if together:
            yield together

    def rehearse(self, alike: UpdatedModel, names: list[str]) -> Generator[str]:
        """Have loader and replay load these modules of the likeness.

        Raises:
            UnwritableError: the engine sleeps, and may want its memory back.
        """
        check_awake("the engine")
        recorded = self._recorded
        modules = dict(alike.model.named_modules())
        targets = {number for name in names for number in recorded.targets_of[name]}
        sources = {number for name in names for number in recorded.sources_of[name]}
        rehearsal = Rehearsal(of_targets(recorded.plans, sorted(sources), targets), targets, self._device)
        nbytes = sum(tensor.nbytes for name in names for tensor in load_format.tensors_of(modules[name]).values())
        if rehearsal.nbytes(nbytes) > free_on(self._device) // 2:
            self._leave(names, TOO_LITTLE)
            return
        with ExitStack() as stack:
            tensors = {
                name: stack.enter_context(load_format.with_memory(alike, modules[name], recorded.recording))
                for name in names
            }
            loaded = {
                number: tensors[name][short].detach()
                for name in names
                for number in recorded.targets_of[name]
                if (short := recorded.short_name_of(number)) in tensors[name]
            }
            try:
                for _ in rehearsal.steps(loaded, self._elsewhere(modules, sources, targets), alike.load):
                    yield STEP
            except (Exception, SeenByPassesError) as error:
                self._leave(names, f"{type(error).__name__}: {error}")
                return
            failed = {recorded.module_of[number] for number in rehearsal.differing}
            self._failed.update(dict.fromkeys(sorted(failed), DIFFERS))
            proved = [name for name in names if name not in failed]
            self._proved += proved
            self.waiting = [name for name in self.waiting if name not in names]
            yield STEP
            for name in proved:
                self._process(name, tensors.pop(name))
                yield STEP

    def _process(self, name: str, loaded: load_format.Tensors) -> None:
        """Find out what vLLM's processing does to a module, where nothing that is served is changed by that."""
        check_awake("the engine")
        served = self._target.model.get_submodule(name)
        if 2 * memory_nbytes(served) > free_on(self._device) // 2:
            self._unseen[TOO_LITTLE] += 1
            return
        try:
            self._seen[name] = rehearse_processing(self._target, served, loaded)
        except (Exception, SeenByPassesError) as error:
            self._unseen[f"{type(error).__name__}: {error}"] += 1

    def tell(self) -> None:
        """Have the recording know what was found out; where that is all, nothing is left to the first update.

        Only what lets the first update be staged is believed. Where it goes in place, it sees the processing itself,
        and a copy of a module might have shown less than can be done.
        """
        recorded = self._recorded
        recorded.learn(self._proved, self._failed)
        replayed = [name for name, mode in recorded.modes.items() if mode is not ApplyMode.LOADER]
        if not all(name in self._seen for name in replayed):
            return
        if has_odd_attention_scales(self._target.model):
            self._unseen[ODD_SCALES] += 1
            return
        seen = {name: self._seen[name] for name in replayed}
        if why := recorded.why_not_staged_with(seen):
            self._unseen[why] += 1
            return
        recorded.settle(seen, {})

    def in_words(self) -> str:
        """What was found out, and what was not."""
        told = [f"rehearsed its replay: {len(self._proved)} modules are replayed as they are loaded"]
        if self._failed:
            told.append(f"{len(self._failed)} are not, which the loader loads")
        told += [f"{count} x left to the first update: {reason}" for reason, count in self.left.most_common(3)]
        if self._recorded.verified:
            told += [self._recorded.summary(), "the first update can be staged"]
        told += [
            f"{count} x its processing is left to the first update: {reason}"
            for reason, count in self._unseen.most_common(3)
        ]
        return "; ".join(told)

    def _leave(self, names: Sequence[str], reason: str) -> None:
        """Leave modules to the first update."""
        self.left[reason] += len(names)
        self.waiting = [name for name in self.waiting if name not in names]

    def _elsewhere(
        self, modules: Mapping[str, torch.nn.Module], sources: set[int], targets: set[int]
    ) -> list[torch.Tensor]:
        """Tensors without memory that these sources also go to."""
        recorded = self._recorded
        numbers = {copy.target for source in sources for copy in recorded.plans.copies_of(source)}
        for group in recorded.layout.op_groups:
            if not sources.isdisjoint(group.sources):
                numbers.update(group.targets)
        found = (
            load_format.tensors_of(modules[recorded.module_of[number]]).get(recorded.short_name_of(number))
            for number in numbers.difference(targets)
        )
        return [tensor for tensor in found if tensor is not None and tensor.is_meta]
