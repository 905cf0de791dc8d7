"""Computes which bytes of a version a layout uses."""

from __future__ import annotations

from collections import defaultdict

from ckpt_transport.planning import ByteRangeSet, Share, digest_of
from ckpt_transport.replay.byte_ranges import EqualRanges, TooFineError
from ckpt_transport.replay.layout import Layout, OwnerKind
from ckpt_transport.replay.memory_map import ranges_at

MOST = 64
"""A tensor of which one copy reads more ranges than this is needed whole: so many would cost more than they save."""


def required_bytes(layout: Layout) -> Share | None:
    """What must come so that ``layout`` can be replayed: what is copied, and whole tensors for all else.

    None when that is every byte.
    A tensor that is read as elements of several sizes is needed whole: it might be cut within one of the larger.
    """
    whole = set(layout.refused_of(OwnerKind.SOURCE))
    whole.update(source for group in layout.op_groups for source in group.sources)
    reads: list[tuple[int, EqualRanges]] = []
    sizes: defaultdict[int, set[int]] = defaultdict(set)
    for copy in layout.copies:
        sizes[copy.source].add(copy.read.itemsize)
        try:
            reads.append((copy.source, ranges_at(copy.read, most=MOST)))
        except TooFineError:
            whole.add(copy.source)
    whole.update(source for source, of_copies in sizes.items() if len(of_copies) > 1)
    needed = ByteRangeSet()
    for source, ranges in reads:
        for start in ranges.starts.tolist() if source not in whole else ():
            needed.add(layout.sources[source].name, start, ranges.nbytes)
    for source in whole:
        needed.add(layout.sources[source].name, 0, layout.sources[source].nbytes)
    if needed.covers({spec.name: spec.nbytes for spec in layout.sources}):
        return None
    return Share(digest_of(layout.sources), tuple(needed))
