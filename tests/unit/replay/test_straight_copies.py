"""Given copies out of a bucket, then those that are runs of bytes are told from those that something is made of."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport.replay.straight_copies import FEW, SHORTEST, StraightCopies
from ckpt_transport.replay.strided_copy import StridedCopy

ROWS = 100
PIECES = [(0, ROWS * 4096), (ROWS * 4096, 256)]


def columns(nbytes: int, rows: int = ROWS, dtype: str = "BF16") -> StridedCopy:
    """So many bytes of each row of 4 KiB."""
    return StridedCopy(3, (rows, nbytes // 2), 64, 8, (4096, 2), (nbytes, 2), dtype, "BF16")


def test_given_columns_then_each_row_is_a_run_that_goes_to_its_place() -> None:
    found = StraightCopies.of([columns(2048)], PIECES)
    assert (found.rest, found.passing) == ((), frozenset())
    assert found.starts.tolist() == [64 + row * 4096 for row in range(ROWS)]
    target = torch.empty(8 + ROWS * 2048, dtype=torch.uint8)
    landing = found.landing({3: target})
    assert (landing.addresses - target.data_ptr()).tolist() == [8 + row * 2048 for row in range(ROWS)]
    assert set(landing.sizes.tolist()) == {2048}


@pytest.mark.parametrize(
    ("copy", "straight"),
    [
        (columns(SHORTEST), True),
        (columns(SHORTEST - 2), False),
        (columns(2, rows=FEW), True),
        (columns(2048, dtype="F16"), False),
        (StridedCopy(0, (50, ROWS), 0, 0, (2, 4096), (2 * ROWS, 2), "BF16", "BF16"), False),
    ],
    ids=["long enough", "too short", "short but few", "converts", "turns"],
)
def test_given_a_copy_then_it_is_straight_or_its_piece_passes(copy: StridedCopy, straight: bool) -> None:
    found = StraightCopies.of([copy], PIECES)
    assert (found.rest, found.passing) == (((), frozenset()) if straight else ((0,), frozenset({0})))
    assert bool(len(found.starts)) == straight
