"""The indices that a part has of each dimension are *runs*, and these are strided ranges of the tensor's bytes.

A rank that holds rows 0 to 1 and 4 to 5 of eight, and all columns, has the runs ``[(0, 2), (4, 6)], [(0, columns)]``.
A plain box has one run in each dimension. If it is cut along one dimension, or along the first and another one, it is
one strided range, however many rows it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

from ckpt_transport import dtypes
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import StridedRange
from ckpt_transport.planning.values.manifest import TensorSpec

MOST_RANGES = 1 << 16
"""So many strided ranges of bytes a part may consist of; each is planned by itself."""

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


def strided_ranges(spec: TensorSpec, runs: Sequence[Sequence[Run]]) -> list[StridedRange]:
    """The bytes of a tensor that have these indices, in the order of the part's own memory.

    Raises:
        CheckpointError: these are too many ranges.
    """
    cut = [dim for dim, size in enumerate(spec.shape) if list(runs[dim]) != [(0, size)]]
    if not cut or not spec.nbytes:
        return [StridedRange(0, spec.nbytes)]
    if not all(runs):
        return []
    last, itemsize = cut[-1], dtypes.BITS[spec.dtype] // 8
    strides = [math.prod(spec.shape[dim + 1 :]) * itemsize for dim in range(last + 1)]
    rows = _rows(runs, cut, last)
    sizes = [sum(end - start for start, end in runs[dim]) for dim in range(rows)]
    apart = len(runs[last]) * (len(runs[rows]) if rows < last else 1)
    count = math.prod(sizes) * apart
    if count > MOST_RANGES:
        raise CheckpointError(
            f"this rank's part of tensor {spec} lies in {count:,} strided ranges of its bytes, because it is cut along "
            f"dimensions {cut}, and at most {MOST_RANGES:,} can be planned; redistribute it to Shard(0), or give "
            "full_tensor() of it"
        )
    outer = [[index for start, end in runs[dim] for index in range(start, end)] for dim in range(rows)]
    found: list[StridedRange] = []
    for indices in product(*outer):
        base = sum(index * stride for index, stride in zip(indices, strides, strict=False))
        for part in _parts(runs, rows, last, strides):
            part = part.shifted(base)
            if found and found[-1].runs == part.runs == 1 and found[-1].end == part.start:
                part = StridedRange(found[-1].start, found.pop().nbytes + part.nbytes)
            found.append(part)
    return found


def _rows(runs: Sequence[Sequence[Run]], cut: Sequence[int], last: int) -> int:
    """The first dimension whose indices, with those of the dimensions up to the last one, are rows at one distance.

    Several runs along the last one lie beside each other in each row, so that rows are looked at one by one.
    """
    if len(runs[last]) > 1:
        return last
    return cut[-2] if len(cut) > 1 else 0


def _parts(runs: Sequence[Sequence[Run]], rows: int, last: int, strides: Sequence[int]) -> Iterator[StridedRange]:
    """Bytes that have the same indices in the dimensions before ``rows``, counted from the first byte of all these."""
    if rows == last:
        for start, end in runs[last]:
            yield StridedRange(start * strides[last], (end - start) * strides[last])
        return
    ((first, end),) = runs[last]
    each = strides[rows] // strides[last - 1]
    for low, high in runs[rows]:
        start = low * strides[rows] + first * strides[last]
        yield StridedRange.of(start, (end - first) * strides[last], (high - low) * each, strides[last - 1])
