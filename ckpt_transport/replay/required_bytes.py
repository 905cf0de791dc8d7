"""Computes which bytes of a version a layout uses."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

from ckpt_transport import dtypes
from ckpt_transport.planning import ByteRangeSet, Share, digest_of
from ckpt_transport.replay.layout import Copy, Layout, OwnerKind

MOST_RUNS = 64
"""A tensor of which one copy reads more runs than this is needed whole: so many would cost more than they save."""


def required_bytes(layout: Layout) -> Share | None:
    """What must come so that ``layout`` can be replayed: what is copied, and whole tensors for all else.

    None when that is every byte.
    A tensor that is read as elements of several sizes is needed whole: it might be cut within one of the larger.
    """
    runs = ByteRangeSet()
    whole = set(layout.refused_of(OwnerKind.SOURCE))
    whole.update(source for group in layout.op_groups for source in group.sources)
    geometry = {copy: _geometry(copy) for copy in layout.copies}
    whole.update(copy.source for copy, (_, dims) in geometry.items() if math.prod(n for _, n in dims) > MOST_RUNS)
    sizes: defaultdict[int, set[int]] = defaultdict(set)
    for copy in layout.copies:
        sizes[copy.source].add(dtypes.TORCH[copy.read.dtype].itemsize)
    whole.update(source for source, of_copies in sizes.items() if len(of_copies) > 1)
    for copy, (length, dims) in geometry.items():
        if copy.source not in whole:
            for place in itertools.product(*(range(0, stride * size, stride) for stride, size in dims)):
                runs.add(layout.sources[copy.source].name, copy.read.offset + sum(place), length)
    for source in whole:
        spec = layout.sources[source]
        runs.add(spec.name, 0, spec.nbytes)
    if runs.covers({spec.name: spec.nbytes for spec in layout.sources}):
        return None
    return Share(digest_of(layout.sources), tuple(runs))


def _geometry(copy: Copy) -> tuple[int, list[tuple[int, int]]]:
    """The length of each run that a copy reads, in bytes, and how these lie: (stride in bytes, number) by dimension."""
    dims = sorted((stride, size) for stride, size in zip(copy.read.strides, copy.shape, strict=True) if size != 1)
    length = dtypes.TORCH[copy.read.dtype].itemsize
    while dims and dims[0][1] > 0 and dims[0][0] <= length:
        stride, size = dims.pop(0)
        length += stride * (size - 1)
    return length, dims
