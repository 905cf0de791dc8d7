"""What a loader does is divided into modules that single elements can be followed to, and those that take all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property

import msgspec

from ckpt_transport.planning import WholeModule
from ckpt_transport.replay.coverage import Writer
from ckpt_transport.replay.element_copies import ElementCopies
from ckpt_transport.replay.exclude_unsupported import touched_by
from ckpt_transport.replay.layout import Layout


class DividedLayout:
    """The two parts of a layout. Each target is in one of them, with all that is written to it.

    Args:
        layout: what a loader does.
        reasons: of further targets, why they take all that they are loaded from.

    Attributes:
        whole: what is done to targets that take all.
        elements: what is copied to the others.
        refusal: why no elements can be followed at all; empty where some can.
    """

    def __init__(self, layout: Layout, reasons: Mapping[int, str]) -> None:
        self._layout = layout
        self._reasons = {**_computed(layout), **reasons}
        self.whole = _only(layout, {number for number in range(len(layout.targets)) if number in self._reasons})
        self.elements = ElementCopies(
            _only(layout, {number for number in range(len(layout.targets)) if number not in self._reasons})
        )
        self.refusal = self._refusal()

    @cached_property
    def modules(self) -> tuple[WholeModule, ...]:
        """Modules that take all that they are loaded from."""
        sources: defaultdict[str, set[int]] = defaultdict(set)
        reasons: dict[str, str] = {}
        writers: list[Writer] = [*self.whole.op_groups, *self.whole.copies]
        for writer in writers:
            read, written = touched_by(writer)
            for target in sorted(written):
                name = self._module_of(target)
                sources[name] |= read
                reasons.setdefault(name, self._reasons[target])
        named = self._layout.sources
        return tuple(
            WholeModule(name, reasons[name], tuple(named[number].name for number in sorted(of)))
            for name, of in sources.items()
            if of
        )

    @cached_property
    def whole_targets(self) -> frozenset[str]:
        """Names of the targets that are loaded to in :attr:`whole`."""
        writers: list[Writer] = [*self.whole.copies, *self.whole.op_groups, *self.whole.fills]
        return frozenset(self._layout.targets[number].name for writer in writers for number in touched_by(writer)[1])

    def _module_of(self, target: int) -> str:
        """The module that a target belongs to; the target itself where that is the whole model."""
        name = self._layout.targets[target].name
        return name.rpartition(".")[0] or name

    def _refusal(self) -> str:
        if self._layout.refused:
            return f"only the loader can load all of it: {self._layout.why()}"
        if not self.elements.targets:
            return next(iter(self._reasons.values()), "its loader copies nothing")
        return ""


def _computed(layout: Layout) -> dict[int, str]:
    """Targets that more is done for than copying bytes, and what."""
    found: dict[int, str] = {}
    for group in layout.op_groups:
        if group.sources:
            of = layout.sources[group.sources[0]].name
            found |= {target: f"the loader computes {layout.targets[target].name} of {of}" for target in group.targets}
    for copy in layout.copies:
        if copy.read.dtype != copy.write.dtype:
            why = f"the loader converts {layout.sources[copy.source].name} to {copy.write.dtype}"
            found.setdefault(copy.target, why)
    return found


def _only(layout: Layout, targets: Iterable[int]) -> Layout:
    """The layout without what is done to other targets."""
    kept = set(targets)

    def is_kept(writer: Writer) -> bool:
        return touched_by(writer)[1] <= kept

    return msgspec.structs.replace(
        layout,
        copies=tuple(filter(is_kept, layout.copies)),
        fills=tuple(filter(is_kept, layout.fills)),
        op_groups=tuple(filter(is_kept, layout.op_groups)),
        gaps=tuple(gap for gap in layout.gaps if gap.target in kept),
        unread=(),
    )
