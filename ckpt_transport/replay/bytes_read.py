"""Which bytes of a bucket its copies read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckpt_transport import dtypes
from ckpt_transport.memory import StridedRange
from ckpt_transport.memory.byte_ranges import TooFineError, ranges_of, strided, union
from ckpt_transport.planning.values.alignment import ALIGNMENT
from ckpt_transport.replay.strided_copy import StridedCopy

MOST = 4096
"""A bucket of which more strided ranges are read is brought whole."""


def bytes_read(
    copies: Sequence[StridedCopy], pieces: Sequence[tuple[int, int]], starts: Sequence[int]
) -> tuple[StridedRange, ...] | None:
    """The bytes that ``copies`` read, in as few ranges as possible; padding between pieces may be among them.

    Args:
        copies: out of one bucket.
        pieces: where each piece starts in it, and its length, in bytes.
        starts: where the runs of its memory start; no range goes on from one to the next.

    Returns: None where so many ranges are read that all of the bucket is brought sooner.
    """
    try:
        read = [
            ranges_of(copy.read, copy.shape, copy.read_strides, dtypes.TORCH[copy.read_dtype].itemsize)
            for copy in copies
        ]
        begins, ends = union(read)
        begin_at, end_at = (np.array(places, np.int64) for places in zip(*((p, p + n) for p, n in pieces), strict=True))
        is_padding = (begins[1:] - ends[:-1] < ALIGNMENT) & np.isin(ends[:-1], end_at) & np.isin(begins[1:], begin_at)
        goes_on = is_padding & ~np.isin(begins[1:], starts)
        begins, ends = begins[np.append(True, ~goes_on)], ends[np.append(~goes_on, True)]
        edges = np.searchsorted(begins, starts[1:])
        runs = zip(np.split(begins, edges), np.split(ends, edges), strict=True)
        return tuple(part for run in runs for part in strided(*run, MOST))
    except TooFineError:
        return None
