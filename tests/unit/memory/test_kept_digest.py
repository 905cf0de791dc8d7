"""A digest that is kept up to date from what has changed is that of the bytes as they are now."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.memory.digest import as_bytes, digest
from ckpt_transport.memory.digest_pages import PAGE_BYTES
from ckpt_transport.memory.kept_digest import KeptDigest

SIZES = st.lists(
    st.sampled_from([2, 8, 30, 4096, 4098, PAGE_BYTES, PAGE_BYTES + 10, 3 * PAGE_BYTES]), min_size=1, max_size=4
)


@given(SIZES, st.sampled_from([1, 2]), st.integers(0, 1 << 30))
def test_given_changes_then_the_digest_is_the_one_of_all_bytes(sizes: list[int], unit: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    runs = [torch.from_numpy(generator.integers(0, 256, size, np.uint8)) for size in sizes]
    kept = KeptDigest(runs)
    assert as_bytes(kept.sums) == as_bytes(digest(runs))
    for _ in range(2):
        for run in runs:
            units = run.numpy().view(f"i{unit}")
            places = np.unique(generator.integers(0, units.size, 7))
            old, new = units[places], generator.integers(0, 256, places.size).astype(units.dtype)
            units[places] = new
            assert kept.change(run.data_ptr() + places * unit, old, new)
        assert as_bytes(kept.sums) == as_bytes(digest(runs))


def test_given_elements_that_lie_elsewhere_then_it_says_so() -> None:
    memory = torch.zeros(64, dtype=torch.uint8)
    kept = KeptDigest([memory[8:24]])
    one = np.zeros(1, np.int32)
    at = memory.data_ptr()
    assert [kept.change(np.array([at + place], np.int64), one, one) for place in (0, 8, 9, 20, 24, 40)] == [
        False,
        True,
        False,
        True,
        False,
        False,
    ]
