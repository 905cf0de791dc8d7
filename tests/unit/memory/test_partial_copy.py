"""Whoever compares what was brought of a bucket knows whether it holds what is to be compared."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.memory import PartialCopy, StridedRange

HOST = torch.device("cpu")
SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 4), st.integers(1, 5))


def laid_out(shapes: list[tuple[int, int, int]], gap: int = 3) -> list[StridedRange]:
    parts, at = [], 0
    for nbytes, runs, between in shapes:
        parts.append(StridedRange(at, nbytes, runs, nbytes + between if runs > 1 else 0))
        at = parts[-1].end + gap
    return parts


def bytes_of(parts: list[StridedRange]) -> set[int]:
    return {
        part.start + run * part.stride + at for part in parts for run in range(part.runs) for at in range(part.nbytes)
    }


@given(st.lists(SHAPES, max_size=5), st.lists(SHAPES, min_size=1, max_size=5), st.integers(0, 9))
def test_given_parts_then_what_is_said_to_be_covered_is(
    brought: list[tuple[int, int, int]], asked: list[tuple[int, int, int]], shift: int
) -> None:
    parts, others = laid_out(brought), [part.shifted(shift) for part in laid_out(asked)]
    if PartialCopy(HOST, parts).covers(others):
        assert bytes_of(others) <= bytes_of(parts)


@given(st.lists(SHAPES, max_size=5))
def test_given_the_same_parts_or_some_of_them_then_they_are_covered(brought: list[tuple[int, int, int]]) -> None:
    parts = laid_out(brought)
    copy = PartialCopy(HOST, parts)
    assert copy.covers(parts)
    assert copy.covers(parts[::2])


def test_given_a_run_then_slices_and_runs_within_it_are_covered_and_what_goes_beyond_is_not() -> None:
    copy = PartialCopy(HOST, [StridedRange(0, 10), StridedRange(100, 50)])
    assert copy.covers([StridedRange(100, 50)])
    assert copy.covers([StridedRange(2, 3), StridedRange(101, 4, 5, 10)])
    assert not copy.covers([StridedRange(2, 3), StridedRange(101, 4, 5, 12)])
    assert not copy.covers([StridedRange(9, 2)])
    assert not copy.covers([StridedRange(50, 1)])
