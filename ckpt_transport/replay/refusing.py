"""What cannot be replayed takes with it all that is loaded together with it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ckpt_transport.replay.coverage import Writer
from ckpt_transport.replay.layout import Fill, Layout, Place, Program, Refusal

Tensor = tuple[Place, int]
"""A source or target, by its index in a layout."""


def refusing(layout: Layout, reasons: Mapping[Tensor, str]) -> Layout:
    """The layout without these sources and targets, and without any that are loaded together with one of them.

    Only the whole loader can load such a tensor, and then it does everything with it that it does.
    """
    refused: dict[Tensor, str] = {(each.place, each.index): each.reason for each in layout.refused}
    for tensor, reason in reasons.items():
        refused.setdefault(tensor, reason)
    writers: tuple[Writer, ...] = (*layout.copies, *layout.fills, *layout.programs)
    while True:
        before = len(refused)
        for writer in writers:
            tensors = _tensors(writer)
            first = next((tensor for tensor in tensors if tensor in refused), None)
            if first is not None and not isinstance(writer, Fill):
                for tensor in tensors:
                    refused.setdefault(tensor, f"belongs to {layout.name_of(*first)}")
        if len(refused) == before:
            break

    def is_kept(writer: Writer) -> bool:
        return not any(tensor in refused for tensor in _tensors(writer))

    return msgspec.structs.replace(
        layout,
        copies=tuple(filter(is_kept, layout.copies)),
        fills=tuple(filter(is_kept, layout.fills)),
        programs=tuple(filter(is_kept, layout.programs)),
        gaps=tuple(gap for gap in layout.gaps if (Place.TARGET, gap.target) not in refused),
        unread=tuple(source for source in layout.unread if (Place.SOURCE, source) not in refused),
        refused=tuple(Refusal(place, index, refused[place, index]) for place, index in sorted(refused)),
    )


def touched(writer: Writer) -> tuple[set[int], set[int]]:
    """Sources and targets of a writer."""
    if isinstance(writer, Program):
        return set(writer.sources), set(writer.targets)
    if isinstance(writer, Fill):
        return set(), {writer.target}
    return {writer.source}, {writer.target}


def _tensors(writer: Writer) -> list[Tensor]:
    sources, targets = touched(writer)
    return [*((Place.SOURCE, index) for index in sources), *((Place.TARGET, index) for index in targets)]
