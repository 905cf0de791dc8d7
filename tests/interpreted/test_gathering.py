"""Scattered tensors are gathered into slots as they lie in their extent."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_transport.checkpoint.gathering import Gathering

ALIGNED = 16


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.data())
def test_given_any_range_then_its_bytes_are_in_the_slot_and_nothing_else_is(
    sizes: list[int], data: st.DataObject
) -> None:
    tensors = [torch.randint(0, 256, (nbytes,), dtype=torch.uint8) for nbytes in sizes]
    offsets, end = [], 0
    for nbytes in sizes:
        offsets.append(end)
        end += -(-nbytes // ALIGNED) * ALIGNED
    extent = torch.full((end + 1,), 7, dtype=torch.uint8)
    for start, tensor in zip(offsets, tensors, strict=True):
        extent[start : start + len(tensor)] = tensor
    gathering = Gathering(torch.device("cpu"), [tensor.data_ptr() for tensor in tensors], sizes, offsets)
    for _ in range(3):
        offset = data.draw(st.integers(0, end))
        slot = torch.full((data.draw(st.integers(0, end + 1 - offset)),), 7, dtype=torch.uint8)
        gathering.fill(slot, offset)
        assert torch.equal(slot, extent[offset : offset + len(slot)])
