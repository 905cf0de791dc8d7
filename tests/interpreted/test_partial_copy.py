"""What a kernel brings of a bucket is what torch's copies bring."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_transport.memory import MemoryRun, PartialCopy, StridedRange, partial_copy

HOST = torch.device("cpu")
PARTS = st.lists(
    st.builds(
        lambda nbytes, runs, gap: (nbytes, runs, nbytes + gap), st.integers(1, 40), st.integers(1, 6), st.integers(1, 9)
    ),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=60)
@given(PARTS, st.integers(0, 8))
def test_given_slices_at_any_address_then_their_bytes_arrive_and_no_other_is_touched(
    shapes: list[tuple[int, int, int]], shift: int
) -> None:
    parts, at = [], 0
    for nbytes, runs, stride in shapes:
        parts.append(StridedRange(at, nbytes, runs, stride))
        at = parts[-1].end + 3
    raw = torch.randint(0, 256, (at + shift,), dtype=torch.uint8)[shift:]
    by_kernel, by_torch = torch.full((2, at), 7, dtype=torch.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial_copy, "has_copy_tables", lambda device: True)
        PartialCopy(HOST, parts).run([MemoryRun(0, raw)], by_kernel)
    PartialCopy(HOST, parts).run([MemoryRun(0, raw)], by_torch)
    assert torch.equal(by_kernel, by_torch)
    for part in parts:
        for number in range(part.runs):
            run = slice(part.start + number * part.stride, part.start + number * part.stride + part.nbytes)
            assert torch.equal(by_kernel[run], raw[run])
            assert (by_kernel[run.stop : run.stop + 1] == 7).all()
