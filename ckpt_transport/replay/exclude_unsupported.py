"""Leaves to the loader what cannot be replayed, and all that is loaded together with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from ckpt_transport.replay.coverage import Writer
from ckpt_transport.replay.layout import Fill, Layout, OpGroup, Owner, OwnerKind


def exclude_unsupported(
    layout: Layout, reasons: Mapping[Owner, str], together: Iterable[Sequence[Owner]] = ()
) -> Layout:
    """The layout without these sources and targets, and without any that are loaded together with one of them.

    Only the whole loader can load such a tensor, and then it does everything with it that it does.

    Args:
        layout: what a loader does.
        reasons: what is left to the loader, and why.
        together: tensors that are loaded together, besides those of one copy or group of operations.
    """
    refused = {**reasons, **layout.refused}
    joined = [*map(_tensors, layout.copies), *map(_tensors, layout.op_groups), *together]
    before = -1
    while len(refused) > before:
        before = len(refused)
        for tensors in joined:
            first = next((tensor for tensor in tensors if tensor in refused), None)
            if first is not None:
                for tensor in tensors:
                    refused.setdefault(tensor, f"belongs to {layout.name_of(first.kind, first.index)}")

    def is_kept(writer: Writer) -> bool:
        return not any(tensor in refused for tensor in _tensors(writer))

    return msgspec.structs.replace(
        layout,
        copies=tuple(filter(is_kept, layout.copies)),
        fills=tuple(filter(is_kept, layout.fills)),
        op_groups=tuple(filter(is_kept, layout.op_groups)),
        gaps=tuple(gap for gap in layout.gaps if Owner(OwnerKind.TARGET, gap.target) not in refused),
        unread=tuple(source for source in layout.unread if Owner(OwnerKind.SOURCE, source) not in refused),
        refused={owner: refused[owner] for owner in sorted(refused)},
    )


def touched_by(writer: Writer) -> tuple[set[int], set[int]]:
    """Sources and targets of a writer."""
    if isinstance(writer, OpGroup):
        return set(writer.sources), set(writer.targets)
    if isinstance(writer, Fill):
        return set(), {writer.write.index}
    return {writer.source}, {writer.target}


def _tensors(writer: Writer) -> list[Owner]:
    sources, targets = touched_by(writer)
    kinds = (OwnerKind.SOURCE, sources), (OwnerKind.TARGET, targets)
    return [Owner(kind, index) for kind, indices in kinds for index in indices]
