"""Given small tensors here and there in an extent, when a bucket is filled, then it has those bytes that it holds."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport_fp8.row_scatter import RowScatter

ROW = 256
CPU = torch.device("cpu")
places = st.sets(st.integers(0, 12), max_size=8).map(sorted)
edges = st.lists(st.one_of(st.integers(0, 13).map(lambda n: n * ROW), st.integers(0, 13 * ROW)), max_size=5)


@given(numbers=places, edges=edges)
def test_given_buckets_that_begin_and_end_anywhere_then_all_rows_arrive_and_nothing_else_is_touched(
    numbers: list[int], edges: list[int]
) -> None:
    expected = torch.full((13 * ROW,), 0xA5, dtype=torch.uint8)
    rows = torch.randint(0, 256, (len(numbers), ROW), dtype=torch.uint8)
    for number, row in zip(numbers, rows, strict=True):
        expected[number * ROW : (number + 1) * ROW] = row
    scatter = RowScatter([number * ROW for number in numbers], CPU)
    found = torch.full_like(expected, 0xA5)
    for first, last in itertools.pairwise(sorted({0, *edges, len(found)})):
        scatter.fill(rows, found[first:last], first)
    assert torch.equal(found, expected)
