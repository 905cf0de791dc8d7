"""Any slicing of any checkpoint, cut anywhere: copies cover each byte once and the replay is exact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_transport.memory.byte_ranges import in_order, missing_of, overlaps, ranges_of, union
from ckpt_transport.replay.strided_copy import CutElementError, StridedCopy, clip, merge, simplified
from tests.unit.recorded import replays_as_it_loads

TYPES = [torch.float32, torch.bfloat16, torch.int8, torch.float64, torch.float16]


@dataclass(frozen=True)
class Slicing:
    """One tensor of the checkpoint: which part of it goes where in a fused parameter, and in which types."""

    rows: int
    columns: int
    first: int
    kept: int
    by_column: bool
    transposed: bool
    dtype: torch.dtype


slicings = st.builds(
    lambda rows, columns, cut, by_column, transposed, dtype: Slicing(
        rows,
        columns,
        min(cut[0], (columns if by_column else rows) - 1),
        max(1, min(cut[1], (columns if by_column else rows) - min(cut[0], (columns if by_column else rows) - 1))),
        by_column,
        transposed,
        dtype,
    ),
    st.integers(1, 9),
    st.integers(1, 40),
    st.tuples(st.integers(0, 8), st.integers(1, 9)),
    st.booleans(),
    st.booleans(),
    st.sampled_from(TYPES),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(slicings, min_size=1, max_size=8), st.sampled_from(TYPES), st.integers(1, 4))
def test_given_any_slicing_then_buckets_of_every_size_bring_the_same_bytes(
    plans: list[Slicing], dtype: torch.dtype, buckets: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors, begin, spans = {}, 0, []
    for number, plan in enumerate(plans):
        values = torch.randn(plan.rows, plan.columns, generator=generator) * 20
        tensors[f"t{number}"] = values.to(plan.dtype)
        count = plan.kept * (plan.rows if plan.by_column else plan.columns)
        spans.append((begin, count))
        begin += count
    module = torch.nn.Module()
    module.register_parameter("fused", torch.nn.Parameter(torch.zeros(begin).to(dtype), requires_grad=False))

    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in pairs:
            number = int(name[1:])
            plan, (start, count) = plans[number], spans[number]
            part = tensor.narrow(int(plan.by_column), plan.first, plan.kept)
            if plan.transposed:
                part = part.t()
            module.get_parameter("fused").data[start : start + count].view(part.shape).copy_(part)

    replays_as_it_loads(module, load, tensors, (1 << 20, 256 * buckets))


def _touched(copy: StridedCopy) -> np.ndarray:
    """Addresses of elements in the bucket and in the target, one row per element."""
    reads = runs_of(copy.read, copy.shape, copy.read_strides)
    writes = runs_of(copy.write, copy.shape, copy.write_strides)
    return np.stack([reads, writes], 1)


def runs_of(offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    index = np.indices(shape).reshape(len(shape), -1)
    return np.asarray(offset + (np.array(strides, np.int64)[:, None] * index).sum(0))


def _elements(copies: Iterable[StridedCopy]) -> list[tuple[int, int, int]]:
    return sorted((copy.target, int(a), int(b)) for copy in copies for a, b in _touched(copy))


bricks = st.builds(
    lambda target, rows, columns, read, write, wide: StridedCopy(
        target, (rows, columns), 4 * read, 4 * write, (4 * wide, 4), (4 * columns, 4), "F32", "F32"
    ),
    st.integers(0, 1),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(4, 6),
)


@given(st.lists(bricks, max_size=12))
def test_given_copies_when_they_are_merged_then_the_same_elements_are_copied(copies: list[StridedCopy]) -> None:
    once = list({elements: copy for copy in copies for elements in [tuple(map(tuple, _touched(copy)))]}.values())
    merging = merge(once)
    assert sorted(_elements(merging)) == sorted(_elements(once))
    assert len(merging) <= len(once)


@given(bricks, st.integers(0, 100), st.integers(0, 100))
def test_given_a_copy_when_it_is_clipped_then_exactly_the_elements_within_are_kept(
    copy: StridedCopy, begin: int, length: int
) -> None:
    begin, end = 4 * begin, 4 * (begin + length)
    wanted = [(t, a, b) for t, a, b in _elements([copy]) if begin <= a and a + 4 <= end]
    assert _elements(clip(copy, begin, end)) == wanted
    assert _elements([simplified(copy)]) == _elements([copy])


def test_given_a_cut_within_an_element_then_it_is_noticed() -> None:
    copy = StridedCopy(0, (4,), 0, 0, (4,), (4,), "F32", "F32")
    try:
        list(clip(copy, 2, 16))
    except CutElementError:
        return
    raise AssertionError("half an element was copied")


def test_given_experts_in_the_order_of_a_file_then_they_become_three_copies() -> None:
    """Given eight experts of down, gate and up, as in a file, then w13 and w2 take one strided copy each."""
    copies = []
    for expert in range(8):
        at = expert * 3 * 1024
        copies.append(StridedCopy(1, (16, 32), at, 1024 * expert, (64, 2), (64, 2), "BF16", "BF16"))
        copies.append(StridedCopy(0, (512,), at + 1024, 2048 * expert, (2,), (2,), "BF16", "BF16"))
        copies.append(StridedCopy(0, (512,), at + 2048, 2048 * expert + 1024, (2,), (2,), "BF16", "BF16"))
    assert [(copy.target, copy.shape) for copy in merge(copies)] == [(0, (8, 1024)), (1, (8, 512))]


parts = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 4), st.integers(1, 8), st.integers(1, 3)), max_size=6)


@given(parts)
def test_given_overlaps_and_gaps_then_they_are_those_of_a_count_of_every_byte(
    parts: list[tuple[int, int, int, int]],
) -> None:
    count = np.zeros(200, int)
    found = []
    for offset, rows, stride, size in parts:
        stride = max(stride, size)
        found.append(ranges_of(offset, (rows,), (stride,), size))
        for row in range(rows):
            count[offset + row * stride : offset + row * stride + size] += 1
    starts, ends, numbers = in_order(found)
    assert bool(overlaps(starts, ends, numbers)) == bool((count > 1).any())
    free = np.zeros(200, bool)
    for begin, end in missing_of(*union(found), 0, 200):
        free[begin:end] = True
    assert (free == (count == 0)).all()
