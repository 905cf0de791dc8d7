"""The indices that a part has of each dimension are *runs*, and these are ranges of the tensor's bytes.

A rank that holds rows 0 to 1 and 4 to 5 of eight, and all columns, has the runs ``[(0, 2), (4, 6)], [(0, columns)]``.
A plain box has one run in each dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

from ckpt_transport import dtypes
from ckpt_transport.errors import CheckpointError
from ckpt_transport.planning.values.byte_ranges import ByteRange
from ckpt_transport.planning.values.manifest import TensorSpec

MOST_RANGES = 1 << 16
"""So many ranges of bytes a part may consist of; each is planned by itself."""

Run = tuple[int, int]
"""First index of a run in one dimension, and its end."""


def chunk(runs: Sequence[Run], chunks: int, number: int) -> list[Run]:
    """What ``torch.chunk`` gives as chunk ``number`` of ``chunks`` of these indices, laid out one behind the other."""
    total = sum(end - start for start, end in runs)
    step = -(-total // chunks)
    low, high = min(number * step, total), min((number + 1) * step, total)
    found: list[Run] = []
    reached = 0
    for start, end in runs:
        first, last = max(low - reached, 0), min(high - reached, end - start)
        if first < last:
            found.append((start + first, start + last))
        reached += end - start
    return found


def byte_ranges(spec: TensorSpec, runs: Sequence[Sequence[Run]]) -> list[ByteRange]:
    """The bytes of a tensor that have these indices, in the order of the part's own memory.

    Raises:
        CheckpointError: these are too many ranges.
    """
    cut = [dim for dim, size in enumerate(spec.shape) if list(runs[dim]) != [(0, size)]]
    if not cut or not spec.nbytes:
        return [ByteRange(0, spec.nbytes)]
    last, itemsize = cut[-1], dtypes.BITS[spec.dtype] // 8
    strides = [math.prod(spec.shape[dim + 1 :]) * itemsize for dim in range(last + 1)]
    count = len(runs[last]) * math.prod(sum(end - start for start, end in runs[dim]) for dim in range(last))
    if count > MOST_RANGES:
        raise CheckpointError(
            f"this rank's part of tensor {spec} lies in {count:,} ranges of its bytes, because it is cut along "
            f"dimension {last}, and at most {MOST_RANGES:,} can be planned; redistribute it to Shard(0), or give "
            "full_tensor() of it"
        )
    outer = [[index for start, end in runs[dim] for index in range(start, end)] for dim in range(last)]
    found: list[ByteRange] = []
    for indices in product(*outer):
        base = sum(index * stride for index, stride in zip(indices, strides, strict=False))
        for start, end in runs[last]:
            low, high = base + start * strides[last], base + end * strides[last]
            if found and found[-1].end == low:
                low = found.pop().start
            found.append(ByteRange(low, high))
    return found
