"""The proof: every byte of a target is written once, or it is known why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ckpt_transport import dtypes
from ckpt_transport.replay.layout import Copy, Fill, Gap, Place, Program, Ref, Target, Walk
from ckpt_transport.replay.memory_map import Targets, begin_of
from ckpt_transport.replay.runs import Runs, TooFineError, intervals, merged, overlaps, remainder, runs

Writer = Copy | Fill | Program


@dataclass(frozen=True, slots=True)
class Coverage:
    """What was found.

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
    part: Runs


def check(targets: Targets, writers: Sequence[Writer], sources: Sequence[str]) -> Coverage:
    """Look at all writes of each piece of memory together.

    Args:
        targets: what there is to write.
        writers: copies, fills and programs, in the order of the loader.
        sources: names of the checkpoint's tensors, for messages.
    """
    clashes: dict[int, str] = {}
    fills: list[Fill] = []
    gaps: list[Gap] = []
    by_storage: dict[int, list[_Write]] = {storage: [] for storage in targets.in_storage}
    storage_of = {index: storage for storage, indices in targets.in_storage.items() for index in indices}
    for writer in writers:
        for target, shape, walk in _walks(writer):
            start = begin_of(targets.tensors[target])
            size = dtypes.TORCH[walk.dtype].itemsize
            try:
                part = runs(start + walk.offset, shape, walk.strides, size)
            except TooFineError as error:
                clashes[target] = f"is written in {error}"
                continue
            by_storage[storage_of[target]].append(_Write(writer, target, part))
    for storage, writes in by_storage.items():
        lasting = [write for write in writes if not isinstance(write.writer, Fill)]
        starts, ends, numbers = intervals(write.part for write in lasting)
        for one, other in overlaps(starts, ends, numbers):
            first, second = lasting[one].writer, lasting[other].writer
            if first is second and isinstance(first, Program):
                continue
            both = " and ".join(sorted({_called(first, sources), _called(second, sources)}))
            reason = f"is written more than once, by {both}"
            clashes[lasting[one].target] = clashes[lasting[other].target] = reason
        left, clash = _fills(writes)
        fills += left
        clashes |= clash
        starts, ends, _ = intervals(write.part for write in writes)
        starts, ends = merged(starts, ends)
        for index in targets.in_storage[storage]:
            begin, end = targets.span(index)
            nbytes = sum(stop - start for start, stop in remainder(starts, ends, begin, end))
            if nbytes:
                gaps.append(Gap(index, nbytes, _why(targets.values[index], nbytes, end - begin)))
    return Coverage(clashes, tuple(fills), tuple(gaps))


def _walks(writer: Writer) -> Iterator[tuple[int, tuple[int, ...], Walk]]:
    if isinstance(writer, Program):
        for step in writer.steps:
            written = step.args[0] if step.args and not step.results else None
            if isinstance(written, Ref) and written.place is Place.TARGET:
                yield written.index, written.shape, written.walk
    else:
        yield writer.target, writer.shape, writer.write


def _fills(writes: Sequence[_Write]) -> tuple[list[Fill], dict[int, str]]:
    """Fills without what is written over them later. A fill over something that was loaded is a clash."""
    kept: list[Fill] = []
    clashes: dict[int, str] = {}
    for number, write in enumerate(writes):
        if not isinstance(write.writer, Fill):
            continue
        loaded = (each.part for each in writes[:number] if not isinstance(each.writer, Fill))
        before = merged(*intervals(loaded)[:2])
        after = merged(*intervals(each.part for each in writes[number + 1 :])[:2])
        fill = write.writer
        size = dtypes.TORCH[fill.write.dtype].itemsize
        target_start = int(write.part.starts[0]) - fill.write.offset if write.part.starts.size else 0
        for start in write.part.starts.tolist():
            stop = start + write.part.nbytes
            if sum(b - a for a, b in remainder(*before, start, stop)) != stop - start:
                clashes[write.target] = "is filled with a constant after it was loaded"
            for a, b in remainder(*after, start, stop):
                walk = Walk(a - target_start, (size,), fill.write.dtype)
                kept.append(Fill(fill.target, ((b - a) // size,), walk, fill.value))
    return kept, clashes


def _called(writer: Writer, sources: Sequence[str]) -> str:
    if isinstance(writer, Copy):
        return sources[writer.source]
    if isinstance(writer, Program):
        return ", ".join(sources[index] for index in writer.sources) or "a constant"
    return "a constant"


def _why(target: Target, missing: int, nbytes: int) -> str:
    if missing < nbytes:
        return "padding that the loader leaves alone"
    return "the loader has nothing for it" if target.parameter else "a buffer that is not loaded"
