"""Sources of which the elements go apart are known without a look at single elements."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.deltas import ElementMap, encode, go_apart, locate_on_host
from ckpt_transport.memory import ElementCopy, StridedBytes
from ckpt_transport.planning import Carrier, PlacedTensor, TensorSpec
from tests.unit.deltas.test_host_carriers import CPU, HOWS, WIDTH, copied

BASES = np.array([1 << 40])
HEIGHT = 24


def part(how: str, first: int, last: int) -> ElementMap:
    """What a source knows that has bytes of a matrix from one up to another, and how a loader takes the matrix."""
    spec = TensorSpec("t", "BF16", (HEIGHT, WIDTH))
    placed = PlacedTensor(spec, 0, 64, last - first, start=first)
    return ElementMap([placed], [spec], StridedBytes.of([copied(0, how, HEIGHT, 1)]), CPU)


def reached(known: ElementMap, nbytes: int) -> set[int]:
    """All addresses to which it brings a byte, when all of them have changed."""
    old = torch.zeros(64 + nbytes, dtype=torch.uint8)
    encoded = encode(old, old + 1, 1)
    carrier = Carrier("c", 0, 0, len(old), 1, encoded.form, encoded.count)
    parts = locate_on_host([carrier], {"c": encoded.raw}, known, BASES)
    return {address for each in parts for address in each.addresses.tolist()}


@given(st.sampled_from(HOWS), st.lists(st.integers(0, 2 * HEIGHT * WIDTH), min_size=1, max_size=3, unique=True))
def test_given_sources_with_parts_of_a_tensor_then_their_spans_have_all_they_reach(how: str, cuts: list[int]) -> None:
    edges = sorted({0, *cuts, 2 * HEIGHT * WIDTH})
    known = [part(how, low, high) for low, high in pairwise(edges)]
    spans = [each.spans(BASES) for each in known]
    for each, of, low, high in zip(known, spans, edges, edges[1:], strict=False):
        found = reached(each, high - low)
        assert all(any(begin <= address < end for begin, end in zip(*of, strict=True)) for address in found)
        assert (of.low[1:] >= of.high[:-1]).all()


@pytest.mark.parametrize(("how", "apart"), [("whole", True), ("columns", True), ("transposed", False)])
def test_given_halves_of_the_rows_then_they_go_apart_unless_they_are_interleaved(how: str, apart: bool) -> None:
    half = HEIGHT * WIDTH
    assert go_apart([each.spans(BASES) for each in (part(how, 0, half), part(how, half, 2 * half))]) is apart


@pytest.mark.parametrize("first", [[0], [], [0, 5]])
def test_given_replicas_then_they_do_not_go_apart(first: Sequence[int]) -> None:
    known = [part("whole", each, 2 * HEIGHT * WIDTH) for each in first]
    assert go_apart([each.spans(BASES) for each in known]) is (len(known) < 2)


def test_given_names_of_one_memory_then_addresses_tell() -> None:
    spec, other = (TensorSpec(name, "BF16", (32,)) for name in ("a", "b"))
    copies = [ElementCopy(number, number, 0, 0, 2, (32,), (2,), (2,)) for number in (0, 1)]
    one, two = (
        ElementMap([PlacedTensor(each, 0, 0, 64)], [spec, other], StridedBytes.of(copies), CPU)
        for each in (spec, other)
    )
    assert go_apart([each.spans(np.array([1000, 1064])) for each in (one, two)])
    assert not go_apart([each.spans(np.array([1000, 1063])) for each in (one, two)])
