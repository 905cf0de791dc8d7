"""Proves that every byte of a target is written once, or says why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from ckpt_transport.memory.byte_ranges import EqualRanges, TooFineError, in_order, missing_of, overlaps, union
from ckpt_transport.replay.layout import Copy, Fill, Gap, OpGroup, TargetTensor
from ckpt_transport.replay.memory_map import Targets, begin_of, ranges_at

Writer = Copy | Fill | OpGroup


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a look at all writes has shown.

    Attributes:
        clashes: for a target, a reason why what is written to it is not certain.
        fills: the given ones, less what is written over them.
        gaps: what nobody writes.
    """

    clashes: Mapping[int, str]
    fills: tuple[Fill, ...]
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True)
class _Write:
    writer: Writer
    target: int
    part: EqualRanges


def check(targets: Targets, writers: Sequence[Writer], sources: Sequence[str]) -> Coverage:
    """Look at all writes of each piece of memory together.

    Args:
        targets: what there is to write.
        writers: copies, fills and groups of operations, in the order of the loader.
        sources: names of the checkpoint's tensors, for messages.
    """
    clashes: dict[int, str] = {}
    fills: list[Fill] = []
    gaps: list[Gap] = []
    by_storage: dict[int, list[_Write]] = {storage: [] for storage in targets.in_storage}
    storage_of = {index: storage for storage, indices in targets.in_storage.items() for index in indices}
    for writer in writers:
        for write in writer.written if isinstance(writer, OpGroup) else (writer.write,):
            target = write.index
            try:
                part = ranges_at(write, begin_of(targets.tensors[target]))
            except TooFineError as error:
                clashes[target] = f"is written in {error}"
                continue
            by_storage[storage_of[target]].append(_Write(writer, target, part))
    for storage, writes in by_storage.items():
        kept = [write for write in writes if not isinstance(write.writer, Fill)]
        for one, other in overlaps(*in_order(write.part for write in kept)):
            first, second = kept[one].writer, kept[other].writer
            if first is second and isinstance(first, OpGroup):
                continue
            both = " and ".join(sorted({_called(first, sources), _called(second, sources)}))
            reason = f"is written more than once, by {both}"
            clashes[kept[one].target] = clashes[kept[other].target] = reason
        left, clash = _fills(writes)
        fills += left
        clashes |= clash
        written = union(write.part for write in writes)
        for index in targets.in_storage[storage]:
            begin, end = targets.span(index)
            nbytes = sum(stop - start for start, stop in missing_of(*written, begin, end))
            if nbytes:
                gaps.append(Gap(index, nbytes, _why(targets.values[index], nbytes, end - begin)))
    return Coverage(clashes, tuple(fills), tuple(gaps))


def _fills(writes: Sequence[_Write]) -> tuple[list[Fill], dict[int, str]]:
    """Cut from fills what is written over them later. A fill over something that was loaded is a clash."""
    kept: list[Fill] = []
    clashes: dict[int, str] = {}
    for number, write in enumerate(writes):
        if not isinstance(write.writer, Fill):
            continue
        before = union(each.part for each in writes[:number] if not isinstance(each.writer, Fill))
        after = union(each.part for each in writes[number + 1 :])
        fill = write.writer
        size = fill.write.itemsize
        target_start = int(write.part.starts[0]) - fill.write.offset if write.part.starts.size else 0
        for start in write.part.starts.tolist():
            stop = start + write.part.nbytes
            if sum(b - a for a, b in missing_of(*before, start, stop)) != stop - start:
                clashes[write.target] = "is filled with a constant after it was loaded"
            for a, b in missing_of(*after, start, stop):
                place = replace(fill.write, shape=((b - a) // size,), offset=a - target_start, strides=(size,))
                kept.append(Fill(place, fill.value))
    return kept, clashes


def _called(writer: Writer, sources: Sequence[str]) -> str:
    if isinstance(writer, Copy):
        return sources[writer.source]
    if isinstance(writer, OpGroup):
        return ", ".join(sources[index] for index in writer.sources) or "a constant"
    return "a constant"


def _why(target: TargetTensor, missing: int, nbytes: int) -> str:
    if missing < nbytes:
        return "padding that the loader leaves alone"
    return "the loader has nothing for it" if target.parameter else "a buffer that is not loaded"
