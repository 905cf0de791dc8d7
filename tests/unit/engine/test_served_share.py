"""What an engine serves of a version is told from where its elements are."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.engine import ServedElements, share_of_served
from ckpt_transport.memory import ElementCopy, StridedBytes
from ckpt_transport.planning import TensorSpec

ROWS, COLUMNS = 12, 10
SPECS = (TensorSpec("a", "BF16", (ROWS, COLUMNS)), TensorSpec("b", "BF16", (ROWS, COLUMNS)))


@st.composite
def boxes(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """Number of a tensor; first row and column, and how many of both."""
    top, left = draw(st.integers(0, ROWS - 1)), draw(st.integers(0, COLUMNS - 1))
    return draw(st.integers(0, 1)), top, left, draw(st.integers(1, ROWS - top)), draw(st.integers(1, COLUMNS - left))


@given(st.lists(boxes(), max_size=5), st.integers(1, 3))
def test_given_copies_of_boxes_then_the_share_is_their_bytes_each_once(
    given_boxes: list[tuple[int, int, int, int, int]], times: int
) -> None:
    copies, wanted = [], torch.zeros(2, ROWS, COLUMNS, 2, dtype=torch.bool)
    for source, top, left, height, width in given_boxes:
        wanted[source, top : top + height, left : left + width] = True
        strides = (0, COLUMNS * 2, 2)
        first = (top * COLUMNS + left) * 2
        copies.append(ElementCopy(source, 0, first, 0, 2, (times, height, width), strides, (1000, COLUMNS * 2, 2)))
    share = share_of_served(ServedElements(SPECS, {}, StridedBytes.of(copies)))
    if share is None:
        assert wanted.all()
        return
    found = torch.zeros(2, ROWS * COLUMNS * 2, dtype=torch.int64)
    for name, part in share.reads():
        for run in range(part.runs):
            start = part.start + run * part.stride
            found["ab".index(name), start : start + part.nbytes] += 1
    assert torch.equal(found.view_as(wanted), wanted.long())
    assert not wanted.all()


def test_given_a_tensor_without_bytes_then_it_is_not_lacking() -> None:
    specs = (SPECS[0], TensorSpec("nothing", "BF16", (0,)))
    whole = ElementCopy(0, 0, 0, 0, 2, (ROWS, COLUMNS), (COLUMNS * 2, 2), (COLUMNS * 2, 2))
    assert share_of_served(ServedElements(specs, {}, StridedBytes.of([whole]))) is None
