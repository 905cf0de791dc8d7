"""Says what is known of the loader of a vLLM model: which modules its replay loads, and how."""

from __future__ import annotations

import enum
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from copy import copy as shallow_copy
from functools import cached_property

import torch

from ckpt_transport import RecordingError, UpdateError
from ckpt_transport.spi import (
    LikenessRecorder,
    Owner,
    OwnerKind,
    RecordedLoader,
    Recording,
    Share,
    TensorSpec,
    fingerprint,
    record,
    required_bytes,
)
from ckpt_transport_vllm.layerwise import packed_together, waits_for_the_end
from ckpt_transport_vllm.likeness import likeness_on_meta
from ckpt_transport_vllm.load_format import can_be_staged, everything_on_meta, tensors_of
from ckpt_transport_vllm.module_tree import ModuleTree
from ckpt_transport_vllm.processing import Processing
from ckpt_transport_vllm.updated_model import UpdatedModel


class ApplyMode(enum.StrEnum):
    """How weights get into a module."""

    IN_PLACE = "in place"
    """They are copied to where kernels read them."""
    STAGED = "staged"
    """They are copied to memory of the form that loaders know, and get from there through vLLM's processing."""
    LOADER = "by the loader"
    """They get through vLLM's layerwise reload."""


DEPENDING = "processed_nbytes", "computes", "why_not_staged"
"""What is found out of a layout and of how modules are loaded, and kept as long as these are the same."""


class RecordedModel(RecordedLoader):
    """The loader of a model, and how each of its modules is loaded.

    The layout is without the modules that the loader has to load.

    Args:
        model: whose loader was recorded; on the meta device, in the form that its loaders know.
        recording: what the loader does.

    Attributes:
        tree: the modules of the model.
        modes: how each module is loaded, by its name.
        reasons: why a module is staged or loaded by the loader.
        module_of: the name of the module that each target belongs to.
        targets_of: the targets of a module.
        sources_of: what a module is loaded from.
        left_to_loader: what only the loader loads.
        unexchangeable: why what processing makes of a staged module cannot be exchanged, by its name.
        proved: modules of which is known, before a first version has come, that they are replayed as they are loaded.
    """

    def __init__(self, model: torch.nn.Module, recording: Recording) -> None:
        super().__init__(recording)
        self.modes: dict[str, ApplyMode] = {}
        self.reasons: dict[str, str] = {}
        self.unexchangeable: dict[str, str] = {}
        self.proved: set[str] = set()
        self._model, self.tree = model, ModuleTree(model, waits_for_the_end)
        self._derive()
        self._exclude(self._not_replayable())
        self._in_place = self._in_place_now()

    @classmethod
    def of(cls, target: UpdatedModel, specs: Sequence[TensorSpec]) -> RecordedModel:
        """Record the loader of ``target`` for these tensors. The model has no weights while that goes on.

        Raises:
            RecordingError: it cannot be recorded.
        """
        model = target.model
        with everything_on_meta(target), target.configured():
            loader: object = model.load_weights
            assert callable(loader)
            return cls(model, record(model, loader, specs))

    @classmethod
    def of_serving(cls, target: UpdatedModel, specs: Sequence[TensorSpec]) -> RecordedModel:
        """As :meth:`of`, while forward passes go through the model: a likeness of it is recorded.

        Raises:
            RecordingError: it cannot be recorded so. It may be when no forward pass runs.
        """
        with likeness_on_meta(target) as alike, target.configured():
            loader: object = alike.model.load_weights
            assert callable(loader)
            recording = record(alike.model, loader, specs, LikenessRecorder)
        if recording.layout.refused:
            raise RecordingError(recording.layout.why())
        return cls(target.model, recording)

    @property
    def holds(self) -> bool:
        """Whether it still holds, and the weights that are written in place are where they were."""
        return super().holds and self._in_place == self._in_place_now()

    def learn(self, proved: Collection[str], failed: Mapping[str, str]) -> None:
        """A rehearsal has shown which modules are replayed as they are loaded, and which are not, and why."""
        self.proved.update(proved)
        self._exclude(failed)
        self._required()

    def settle(self, seen: Mapping[str, Processing], failed: Mapping[str, str]) -> None:
        """A first version, or a rehearsal of one, has shown how each module is to be loaded.

        Args:
            seen: what vLLM's processing does, by module.
            failed: what was not replayed as it was loaded, by module.
        """
        for name, processing in seen.items():
            self.modes[name] = ApplyMode.STAGED if processing.reason else ApplyMode.IN_PLACE
            self.reasons[name], self.unexchangeable[name] = processing.reason, processing.unexchangeable
        self._exclude(failed)
        self._divide_anew()
        self.verified = True
        self._in_place = self._in_place_now()
        self.share = self._required()

    def why_not_staged_with(self, seen: Mapping[str, Processing]) -> str:
        """What :attr:`why_not_staged` would be if that were what vLLM's processing does."""
        imagined = shallow_copy(self)
        imagined.modes, imagined.reasons = dict(self.modes), dict(self.reasons)
        imagined.unexchangeable = dict(self.unexchangeable)
        imagined.settle(seen, {})
        return imagined.why_not_staged

    def _required(self) -> Share | None:
        """What a version must bring, which is found out once for a layout."""
        if not self._found_required:
            self._found_required.append(required_bytes(self.layout))
        return self._found_required[0]

    def check_in_place(self) -> None:
        """See that what was written in place is where kernels read.

        Raises:
            UpdateError: it is somewhere else.
        """
        if self._in_place != self._in_place_now():
            raise UpdateError(
                "parameters of the model got other memory while an update was applied, so what was loaded is not used; "
                "change them between updates"
            )

    @property
    def empty(self) -> list[str]:
        """Parameters, or parts of them, that the loader has nothing for. Attention may do without any of its own."""
        targets = self.layout.targets
        attention = set(self.tree.attention)
        return [
            targets[gap.target].name
            for gap in self.layout.gaps
            if targets[gap.target].parameter and self.tree.modules[self.module_of[gap.target]] not in attention
        ]

    def summary(self) -> str:
        """How many modules are loaded in which mode, and why not in a faster one."""
        counts = Counter(self.modes.values())
        told = ", ".join(f"{counts[mode]} modules {mode}" for mode in ApplyMode if counts[mode])
        slower = (name for name, mode in self.modes.items() if mode is not ApplyMode.IN_PLACE)
        why = Counter(self.reasons[name] for name in slower if name in self.reasons)
        return told + "".join(f"; {count} x {reason}" for reason, count in why.most_common(3))

    # -- beside what is served ----------------------------------------------------------------------------------------

    def served(self) -> dict[str, torch.Tensor]:
        """The tensors of the model that versions change, by name."""
        written = {self.layout.targets[number].name for number in self._loaded}
        written |= {self.layout.targets[fill.write.index].name for fill in self.layout.fills}
        modules = self.tree.modules
        found: dict[str, torch.Tensor] = {}
        for name, mode in self.modes.items():
            passing = modules[name]._non_persistent_buffers_set
            for short, tensor in tensors_of(modules[name]).items():
                key = f"{name}.{short}"
                if key in written if mode is ApplyMode.IN_PLACE else short not in passing:
                    found[key] = tensor
        return found

    @cached_property
    def processed_nbytes(self) -> int:
        """Bytes of a version that vLLM processes; on CPUs it keeps the outcome beside parameters."""
        copies = self.layout.copies
        return sum(copy.nbytes for copy in copies if self.modes[self.module_of[copy.target]] is ApplyMode.STAGED)

    @cached_property
    def computes(self) -> bool:
        """Whether something is computed of what comes, which each kind of device may round in its own way."""
        casts = any(copy.read.dtype != copy.write.dtype for copy in self.layout.copies)
        return casts or bool(self.layout.op_groups) or ApplyMode.STAGED in self.modes.values()

    @cached_property
    def why_not_staged(self) -> str:
        """Which module keeps a version from being loaded beside what is served, and why; empty when none does.

        It is looked for once: modules have other reasons only when they are recorded or settled anew.
        """
        modules = self.tree.modules
        for name, mode in self.modes.items():
            if mode is ApplyMode.LOADER:
                return f"{name} is loaded by its loader, which does it in place: {self.reasons[name]}"
            if mode is ApplyMode.STAGED and any(modules[name].children()):
                return f"{name} is processed together with modules of its own"
            if reason := self.unexchangeable.get(name) if mode is ApplyMode.STAGED else "":
                return f"what vLLM makes of {name} cannot be exchanged: {reason}"
        if self.left_to_loader:
            return f"{self.left_to_loader[0].name} is loaded by the loader, which does it in place"
        together = set(packed_together(modules.values()))
        reasons = (
            (name, "is packed for a CPU twice" if each in together else _derives(each))
            for name, each in modules.items()
        )
        return next((f"{name} {reason}" for name, reason in reasons if reason), "")

    def _takes_whole(self) -> Mapping[int, str]:
        """Kernels do not read the elements that come of what vLLM processes."""
        return {
            number: f"vLLM processes it when it is loaded: {self.reasons[name]}"
            for name, mode in self.modes.items()
            if mode is ApplyMode.STAGED
            for number in self.targets_of[name]
        }

    def _divide_anew(self) -> None:
        super()._divide_anew()
        for name in DEPENDING:
            vars(self).pop(name, None)

    def _becomes_part(self) -> None:
        modes, self.modes = self.modes, {}
        self._derive()
        self.modes = {name: modes[name] for name in self.modes}

    def short_name_of(self, target: int) -> str:
        """What a target is called within its module."""
        return self.layout.targets[target].name.rpartition(".")[2]

    # -- by module ----------------------------------------------------------------------------------------------------

    def _derive(self) -> None:
        """Sort what the layout does by module."""
        layout = self.layout
        self._found_required: list[Share | None] = []
        self.module_of = [target.name.rpartition(".")[0] for target in layout.targets]
        self.targets_of: defaultdict[str, list[int]] = defaultdict(list)
        self.sources_of: defaultdict[str, set[int]] = defaultdict(set)
        self._loaded: set[int] = set()
        for copy in layout.copies:
            self._loaded.add(copy.target)
            self.sources_of[self.module_of[copy.target]].add(copy.source)
        for group in layout.op_groups:
            if group.sources:
                self._loaded.update(group.targets)
            for target in group.targets:
                self.sources_of[self.module_of[target]].update(group.sources)
        for target in sorted(self._loaded):
            self.modes.setdefault(self.module_of[target], ApplyMode.STAGED)
        for number, name in enumerate(self.module_of):
            if name in self.modes:
                self.targets_of[name].append(number)
        self.left_to_loader = [layout.sources[number] for number in sorted(layout.refused_of(OwnerKind.SOURCE))]

    def _not_replayable(self) -> dict[str, str]:
        """Modules that cannot be replayed as a whole, and why."""
        layout = self.layout
        failed = {self.module_of[index]: reason for index, reason in layout.refused_of(OwnerKind.TARGET).items()}
        for group in layout.op_groups:
            if not group.sources:
                made = (self.module_of[target] for target in group.targets)
                failed |= dict.fromkeys(made, "the loader makes it of nothing that comes")
        modules = self.tree.modules
        for name in self.modes:
            loaded = [number for number in self.targets_of[name] if number in self._loaded]
            if not can_be_staged(modules[name], [self.short_name_of(number) for number in loaded]):
                failed.setdefault(name, "vLLM processes it after all others")
        return failed

    def _exclude(self, failed: Mapping[str, str]) -> None:
        """Leave modules to the loader, for these reasons, and with them what shares a tensor with one of them."""
        if not failed:
            return
        modules: defaultdict[str, list[Owner]] = defaultdict(list)
        for number, name in enumerate(self.module_of):
            modules[name].append(Owner(OwnerKind.TARGET, number))
        self.exclude({owner: failed[name] for name in failed for owner in modules[name]}, modules.values())
        refused = self.layout.refused_of(OwnerKind.TARGET)
        failed = {**{self.module_of[index]: reason for index, reason in refused.items()}, **failed}
        self._derive()
        self.modes.update(dict.fromkeys(failed, ApplyMode.LOADER))
        self.reasons.update(failed)

    def _in_place_now(self) -> object:
        """Where the weights are that are written in place."""
        modules = self.tree.modules
        found: dict[str, torch.Tensor] = {}
        for name, mode in self.modes.items():
            if mode is ApplyMode.IN_PLACE and name in modules:
                found.update((f"{name}.{each}", tensor) for each, tensor in tensors_of(modules[name]).items())
        return fingerprint(found)


def _derives(module: torch.nn.Module) -> str:
    """What a module makes of the weights of others when all are there, in words; empty for nothing."""
    if waits_for_the_end(module):
        if getattr(module, "kv_b_proj", None) is not None:
            return "makes its projections of kv_b_proj"
        if getattr(getattr(module, "impl", None), "sinks", None) is not None:
            return "keeps sinks for its kernels"
    if isinstance(getattr(module, "_cpu_unpacked_conv_weight", None), torch.Tensor):
        return "packs its convolution for a CPU"
    return ""
