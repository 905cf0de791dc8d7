"""Runs of whole pages that follow each other are digested as one."""

from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ckpt_transport.execution.samples import joined
from ckpt_transport.memory.digest import as_bytes, digest
from ckpt_transport.memory.digest_pages import PAGE_BYTES

sizes = st.sampled_from([0, 1, PAGE_BYTES - 1, PAGE_BYTES, 2 * PAGE_BYTES, PAGE_BYTES + 16])
gaps = st.sampled_from([0, 0, 0, 16])


@settings(deadline=None, max_examples=60)
@example([(PAGE_BYTES, 0), (2 * PAGE_BYTES, 0), (77, 0), (PAGE_BYTES, 0)])
@given(st.lists(st.tuples(sizes, gaps), min_size=1, max_size=6))
def test_given_runs_then_what_is_joined_of_them_has_the_same_bytes_and_the_same_digest(
    some: list[tuple[int, int]],
) -> None:
    parts, end = [], 0
    for nbytes, gap in some:
        parts.append((end, nbytes))
        end += nbytes + gap
    memory = torch.randint(0, 256, (end,), dtype=torch.uint8, generator=torch.Generator().manual_seed(end))
    apart, together = ([memory[at : at + nbytes] for at, nbytes in some] for some in (parts, joined(parts)))
    assert torch.equal(torch.cat(apart), torch.cat(together))
    assert as_bytes(digest(apart)) == as_bytes(digest(together))


def test_given_tensors_of_whole_pages_one_behind_the_other_then_they_are_one_run() -> None:
    assert joined([(0, PAGE_BYTES), (PAGE_BYTES, 3 * PAGE_BYTES), (4 * PAGE_BYTES, 5)]) == [(0, 4 * PAGE_BYTES + 5)]
