"""Which bytes of a version an engine serves, so that it is sent what has changed in these and nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from ckpt_transport.engine.served_elements import ServedElements
from ckpt_transport.memory import StridedRange
from ckpt_transport.memory.byte_ranges import TooFineError, ranges_of, strided, union
from ckpt_transport.planning import Share, digest_of

MOST_STRIDED = 256
"""A tensor of which more strided ranges are served counts as served whole: each is looked up for every delta."""


class _Read(NamedTuple):
    """What one copy reads of a tensor, in bytes; steps along which it reads the same are left out."""

    start: int
    run: int
    counts: tuple[int, ...]
    strides: tuple[int, ...]


def share_of_served(elements: ServedElements) -> Share | None:
    """The bytes of a version that are somewhere in what is served; None where all of them are."""
    read: defaultdict[int, set[_Read]] = defaultdict(set)
    copies = elements.copies
    columns = (copies.source, copies.read, copies.run, copies.counts, copies.read_strides)
    for source, start, run, counts, strides in zip(*(column.tolist() for column in columns), strict=True):
        steps = [(count, stride) for count, stride in zip(counts, strides, strict=True) if stride or not count]
        read[source].add(_Read(start, run, tuple(count for count, _ in steps), tuple(stride for _, stride in steps)))
    whole = elements.whole_names
    for number, spec in enumerate(elements.specs):
        if spec.name in whole and spec.nbytes:
            read[number] = {_Read(0, spec.nbytes, (), ())}
    known: dict[frozenset[_Read], tuple[StridedRange, ...] | None] = {}
    ranges: list[tuple[str, int, int]] = []
    slices: list[tuple[str, StridedRange]] = []
    lacking = False
    for number, spec in sorted(enumerate(elements.specs), key=lambda each: each[1].name):
        key = frozenset(read[number])
        if key not in known:
            known[key] = _served(key)
        served = known[key]
        if served is None or served == (StridedRange(0, spec.nbytes),):
            ranges.append((spec.name, 0, spec.nbytes))
            continue
        lacking |= spec.nbytes > 0
        if all(part.runs == 1 for part in served):
            ranges += [(spec.name, part.start, part.nbytes) for part in served]
        else:
            ranges.append((spec.name, 0, spec.nbytes))
            slices += [(spec.name, part) for part in served]
    return Share(digest_of(elements.specs), tuple(ranges), tuple(slices)) if lacking else None


def _served(reads: Iterable[_Read]) -> tuple[StridedRange, ...] | None:
    """All bytes that are read, once; None where that is cut too finely to be listed."""
    try:
        starts, ends = union(ranges_of(each.start, each.counts, each.strides, each.run) for each in reads)
        return tuple(strided(starts, ends, MOST_STRIDED))
    except TooFineError:
        return None
