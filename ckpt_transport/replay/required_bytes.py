"""Computes which bytes of a version a layout uses."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from ckpt_transport.memory import StridedRange
from ckpt_transport.memory.byte_ranges import TooFineError, ranges_of, strided, union
from ckpt_transport.planning import ByteRangeSet, Share, digest_of
from ckpt_transport.replay.layout import Layout, OwnerKind

MOST = 64
"""A tensor of which one copy reads more ranges than this is sent whole: so many would cost more than they save."""
MOST_STRIDED = 256
"""A tensor of which more strided ranges are read is read whole: each is a step of every update."""

Geometry = tuple[int, tuple[int, ...], tuple[int, ...], int]
"""What a copy reads of a tensor: as :func:`ranges_of` is given it."""


def required_bytes(layout: Layout) -> Share | None:
    """What must come so that ``layout`` can be replayed: what is copied, and whole tensors for all else.

    None when that is every byte.
    A tensor that is read as elements of several sizes is needed whole: it might be cut within one of the larger.
    """
    whole = set(layout.refused_of(OwnerKind.SOURCE))
    whole.update(source for group in layout.op_groups for source in group.sources)
    read: defaultdict[int, set[Geometry]] = defaultdict(set)
    for copy in layout.copies:
        read[copy.source].add((copy.read.offset, copy.read.shape, copy.read.strides, copy.read.itemsize))
    whole.update(source for source, of_copies in read.items() if len({itemsize for *_, itemsize in of_copies}) > 1)
    needed, slices = ByteRangeSet(), []
    known: dict[frozenset[Geometry], _Read | None] = {}
    for source, geometries in read.items():
        if source in whole:
            continue
        key = frozenset(geometries)
        if key not in known:
            known[key] = _read(key)
        found, spec = known[key], layout.sources[source]
        if found is None:
            whole.add(source)
            continue
        for start, nbytes in found.runs:
            needed.add(spec.name, start, nbytes)
        if found.slices:
            whole.add(source)
            slices += [(spec.name, part) for part in found.slices]
    for source in whole:
        needed.add(layout.sources[source].name, 0, layout.sources[source].nbytes)
    if not slices and needed.covers({spec.name: spec.nbytes for spec in layout.sources}):
        return None
    return Share(digest_of(layout.sources), tuple(needed), tuple(slices))


class _Read(NamedTuple):
    """What is read of one tensor: runs (start, length) that are worth being sent, or slices."""

    runs: tuple[tuple[int, int], ...] = ()
    slices: tuple[StridedRange, ...] = ()


def _read(geometries: frozenset[Geometry]) -> _Read | None:
    """Every byte that is read, once; None where that is cut too finely even to be listed."""
    try:
        parts = [ranges_of(*geometry) for geometry in geometries]
        starts, ends = union(parts)
        if all(len(part.starts) <= MOST for part in parts):
            return _Read(runs=tuple(zip(starts.tolist(), (ends - starts).tolist(), strict=True)))
        if len(starts) == 1:
            return _Read(runs=((int(starts[0]), int(ends[0] - starts[0])),))
        return _Read(slices=tuple(strided(starts, ends, MOST_STRIDED)))
    except TooFineError:
        return None
