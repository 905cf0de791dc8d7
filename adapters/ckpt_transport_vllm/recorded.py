"""What is known of a model's loader: its layout, and the way that each module takes."""

from __future__ import annotations

import enum
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ckpt_transport.errors import RecordingError, UpdateError
from ckpt_transport.planning import Share, TensorSpec, digest_of
from ckpt_transport.replay import Part, Place, Recording, Script, Scripts, fingerprint, key_of, needs, record, refusing
from ckpt_transport_vllm.layerwise import waits_for_the_end
from ckpt_transport_vllm.load_format import can_be_staged, everything_on_meta
from ckpt_transport_vllm.target import Target
from ckpt_transport_vllm.versions import installed_version

NOTHING = "the loader has nothing for it"


class Way(enum.StrEnum):
    """How weights get into a module."""

    IN_PLACE = "in place"
    """Straight to where kernels read them."""
    STAGED = "staged"
    """Into memory of the form that loaders know, and from there through vLLM's processing."""
    LOADER = "by the loader"
    """Through vLLM's layerwise reload."""


@dataclass(frozen=True, slots=True)
class Act:
    """What is to be done with one bucket.

    Attributes:
        script: what is replayed.
        modules: names of those it reaches.
    """

    script: Script
    modules: frozenset[str]


@dataclass
class Recorded:
    """A model's loader, recorded for one set of tensors.

    Attributes:
        model: whose loader it is.
        specs: what a version brings.
        recording: what the loader does with it.
        ways: of each module that is loaded, by name.
        reasons: why a module is staged or loaded by the loader.
        verified: every module was found to be as its loader leaves it.
        seconds: that recording took.
        loading: seconds that the loader takes; 0 when it was not measured.
        share: what a version must bring; None for everything, as long as it was not seen that the rest is not needed.
    """

    model: torch.nn.Module
    specs: tuple[TensorSpec, ...]
    recording: Recording
    seconds: float
    ways: dict[str, Way] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    verified: bool = False
    loading: float = 0.0
    share: Share | None = None
    bound: tuple[object, ...] = ()
    acts: dict[object, Act] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layout = self.recording.layout
        """Less what cannot be replayed."""
        self._derive()

    @classmethod
    def of(cls, target: Target, specs: Sequence[TensorSpec]) -> Recorded:
        """Record the loader of ``target`` for these tensors. The model has no weights while that goes on.

        Raises:
            RecordingError: it cannot be recorded.
        """
        began = time.perf_counter()
        parallel = target.vllm_config.parallel_config
        context = (
            installed_version(),
            str(target.model_config.hf_config),
            f"{target.model_config.dtype} {target.model_config.quantization}",
            f"{parallel.tensor_parallel_size} {parallel.pipeline_parallel_size} {parallel.enable_expert_parallel}",
        )
        model = target.model
        with everything_on_meta(target):
            key = key_of(model, specs, *context)
            loader: object = model.load_weights
            assert callable(loader)
            recording = record(model, loader, specs, key)
            recorded = cls(model, tuple(specs), recording, time.perf_counter() - began)
            recorded._leave_to_the_loader(model)
        return recorded

    def holds_for(self, target: Target, specs: Sequence[TensorSpec]) -> bool:
        """Whether this is about the same tensors, and the model is as it was."""
        return (
            self.model is target.model
            and (self.specs == tuple(specs) or digest_of(self.specs) == digest_of(specs))
            and self.recording.holds
            and (not self.verified or self.bound == self._bound(target.model))
        )

    def settle(self, target: Target, ways: Mapping[str, Way], failed: Mapping[str, str]) -> None:
        """A first update has shown which ways are right."""
        self.ways.update(ways)
        if failed:
            self._refuse(failed)
        self.verified = True
        self.bound = self._bound(target.model)
        self.share = needs(self.layout)

    def check_bound(self) -> None:
        """
        Raises:
            UpdateError: the weights that were written in place are not where they were when the update began.
        """
        if self.verified and self.bound != self._bound(self.model):
            raise UpdateError(
                "parameters of the model got other memory while an update was applied, so what was loaded is not used; "
                "change them between updates"
            )

    def act(self, key: object, places: Sequence[tuple[TensorSpec, int, int, int]]) -> Act:
        """What is to be done with a bucket.

        Raises:
            RecordingError: it brings something that was not to come.
        """
        known = self.acts.get(key)
        if known is None:
            parts: list[Part] = []
            for place in places:
                part = self.scripts.part(*place)
                if part is None:
                    raise RecordingError(f"{place[0]} comes, which the version was not said to have")
                parts.append(part)
            script = self.scripts.make(parts)
            targets = set(script.copied)
            for part in script.gathered:
                targets |= self._reached[part.source]
            known = self.acts[key] = Act(script, frozenset(self.module_of[target] for target in targets))
        return known

    @property
    def empty(self) -> list[str]:
        """Parameters, or parts of them, that the loader has nothing for. Attention may do without any of its own."""
        targets = self.layout.targets
        attention = {name for name, module in self.model.named_modules() if waits_for_the_end(module)}
        return [
            targets[gap.target].name
            for gap in self.layout.gaps
            if targets[gap.target].parameter and self.module_of[gap.target] not in attention
        ]

    def summary(self) -> str:
        """How many modules take which way, and why not a faster one."""
        counts = Counter(self.ways.values())
        told = ", ".join(f"{counts[way]} modules {way}" for way in Way if counts[way])
        why = Counter(reason for name, reason in self.reasons.items() if self.ways.get(name) is not Way.IN_PLACE)
        return told + "".join(f"; {count} x {reason}" for reason, count in why.most_common(3))

    # -- derived ------------------------------------------------------------------------------------------------------

    def _derive(self) -> None:
        layout = self.layout
        self.scripts = Scripts(layout)
        self.acts.clear()
        self.module_of = [target.name.rpartition(".")[0] for target in layout.targets]
        self.targets_of: defaultdict[str, list[int]] = defaultdict(list)
        self.bytes_of: Counter[str] = Counter()
        self.programs_of: defaultdict[str, set[int]] = defaultdict(set)
        self.sources_of: defaultdict[str, set[int]] = defaultdict(set)
        self._reached: defaultdict[int, set[int]] = defaultdict(set)
        for copy in layout.copies:
            self.bytes_of[self.module_of[copy.target]] += copy.nbytes
            self.sources_of[self.module_of[copy.target]].add(copy.source)
            self._reached[copy.source].add(copy.target)
        for number, program in enumerate(layout.programs):
            for target in program.targets:
                self.programs_of[self.module_of[target]].add(number)
                self.sources_of[self.module_of[target]].update(program.sources)
                for source in program.sources:
                    self._reached[source].add(target)
        loaded = {target for targets in self._reached.values() for target in targets}
        for index in sorted(loaded):
            self.ways.setdefault(self.module_of[index], Way.STAGED)
        for number, name in enumerate(self.module_of):
            if name in self.ways:
                self.targets_of[name].append(number)
        refused = {each.index for each in layout.refused if each.place is Place.SOURCE}
        self.left = [layout.sources[number] for number in sorted(refused)]

    def _leave_to_the_loader(self, model: torch.nn.Module) -> None:
        """Modules that cannot be replayed as a whole, of a model on the meta device."""
        modules = dict(model.named_modules())
        failed = {}
        for each in self.layout.refused:
            if each.place is Place.TARGET:
                failed[self.module_of[each.index]] = each.reason
        for program in self.layout.programs:
            if not program.sources:
                failed |= {
                    self.module_of[target]: "the loader makes it of nothing that comes" for target in program.targets
                }
        for name in self.ways:
            loaded = [self.layout.targets[number].name.rpartition(".")[2] for number in self._written(name)]
            if not can_be_staged(modules[name], loaded):
                failed.setdefault(name, "vLLM processes it after all others")
        if failed:
            self._refuse(failed)

    def _written(self, module: str) -> set[int]:
        written = {target for targets in self._reached.values() for target in targets}
        return {number for number in self.targets_of[module] if number in written}

    def _refuse(self, failed: Mapping[str, str]) -> None:
        """Leave modules to the loader, and what shares a tensor with one of them."""
        failed = dict(failed)
        while True:
            reasons = {
                (Place.TARGET, number): failed[name] for number, name in enumerate(self.module_of) if name in failed
            }
            self.layout = refusing(self.layout, reasons)
            more = {
                self.module_of[each.index]: each.reason
                for each in self.layout.refused
                if each.place is Place.TARGET and self.module_of[each.index] not in failed
            }
            if not more:
                break
            failed |= more
        self._derive()
        self.ways.update(dict.fromkeys(failed, Way.LOADER))
        self.reasons.update(failed)

    def _bound(self, model: torch.nn.Module) -> tuple[object, ...]:
        """Where the weights are that are written in place."""
        modules = dict(model.named_modules())
        found: dict[str, torch.Tensor] = {}
        for name, way in self.ways.items():
            if way is Way.IN_PLACE and name in modules:
                module = modules[name]
                for kind in (module._parameters, module._buffers):
                    found.update((f"{name}.{each}", tensor) for each, tensor in kind.items() if tensor is not None)
        return fingerprint(found)
