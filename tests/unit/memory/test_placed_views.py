"""Given views of memory that stays where it is, then each is asked once where it lies."""

from __future__ import annotations

from collections import Counter

import torch

from ckpt_transport.memory import PlacedViews, RunTable, addresses_of, reads_in_place
from tests.looks import Looks

COUNT, NBYTES = 1000, 16


def test_given_a_bucket_that_comes_again_in_the_same_views_then_none_of_them_is_asked_anything() -> None:
    memory = torch.zeros(COUNT * NBYTES, dtype=torch.uint8)
    views = PlacedViews(torch.split(memory, NBYTES))
    starts, begin = range(0, COUNT * NBYTES, NBYTES), memory.data_ptr()
    asked = []
    for _ in range(2):
        with Looks() as looks:
            runs = RunTable(starts, views.addresses, [NBYTES] * COUNT, views)
            assert reads_in_place(memory.device, runs)
            assert addresses_of(runs) == tuple(begin + start for start in starts)
        asked.append(looks.of_each(COUNT))
    assert asked == [Counter(data_ptr=1, device=1), Counter()]
