"""Which bytes of a version a layout uses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from ckpt_transport import dtypes
from ckpt_transport.planning import Runs, Share, digest_of
from ckpt_transport.recording.layout import Copy, Layout, Place

MOST_RUNS = 64
"""What one copy reads in more runs than this is taken for all that lies between the first and the last."""


def needs(layout: Layout) -> Share:
    """What must come so that ``layout`` can be replayed: what is copied, and whole tensors for all else."""
    runs = Runs()
    whole = {each.index for each in layout.refused if each.place is Place.SOURCE}
    whole.update(source for program in layout.programs for source in program.sources)
    for copy in layout.copies:
        if copy.source not in whole:
            for low, high in _read(copy):
                runs.add(layout.sources[copy.source].name, low, high - low)
    for source in whole:
        spec = layout.sources[source]
        runs.add(spec.name, 0, spec.nbytes)
    return Share(digest_of(layout.sources), tuple(runs))


def _read(copy: Copy) -> Iterator[tuple[int, int]]:
    """First byte and the one behind the last of every run that a copy reads."""
    if not math.prod(copy.shape):
        return
    dims = sorted((stride, size) for stride, size in zip(copy.read.strides, copy.shape, strict=True) if size > 1)
    length = dtypes.TORCH[copy.read.dtype].itemsize
    while dims and dims[0][0] <= length:
        stride, size = dims.pop(0)
        length += stride * (size - 1)
    if math.prod(size for _, size in dims) > MOST_RUNS:
        length += sum(stride * (size - 1) for stride, size in dims)
        dims = []
    for place in itertools.product(*(range(0, stride * size, stride) for stride, size in dims)):
        start = copy.read.offset + sum(place)
        yield start, start + length
