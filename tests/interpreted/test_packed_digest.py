"""A GPU packs slices and finds the digest that a CPU finds, in one run of memory and in several, at any address."""

from __future__ import annotations

from functools import partial

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpt_transport.execution.run_digests import digest_of_slices
from ckpt_transport.memory import Addresses, MemoryRun, StridedRange, part_of
from ckpt_transport.memory.digest import as_bytes
from ckpt_transport.memory.packed_digest import packed_digest, packs
from ckpt_transport.memory.packed_digest_table import PackedDigestTable, PlacedRange
from tests.unit.worlds import strided_ranges

CPU = torch.device("cpu")
CHECKED = settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow])


@CHECKED
@given(st.lists(strided_ranges(300), min_size=1, max_size=4), st.integers(0, 9))
def test_given_slices_of_any_strides_then_their_digest_is_that_of_a_cpu(ranges: list[StridedRange], shift: int) -> None:
    memory = torch.randint(0, 256, (400,), dtype=torch.uint8)[shift:]
    sums = torch.zeros(2, dtype=torch.int64)
    table = PackedDigestTable(CPU, ([PlacedRange(0, part) for part in pack] for pack in packs(ranges)))
    table.add(sums, Addresses(CPU, [memory.data_ptr()]))
    assert as_bytes(sums) == as_bytes(packed_digest(ranges, partial(part_of, (MemoryRun(0, memory),))))


def test_given_a_bucket_in_several_runs_when_they_lie_elsewhere_then_the_digest_is_of_what_is_there() -> None:
    slices = [
        StridedRange(3, 5, 9, 11),
        StridedRange(512, 100),
        StridedRange(4096, 7, 30, 9),
    ]
    for _ in range(3):
        runs = [
            MemoryRun(at, torch.randint(0, 256, (nbytes,), dtype=torch.uint8))
            for at, nbytes in [(0, 300), (512, 200), (4096, 300)]
        ]
        expected = packed_digest(slices, partial(part_of, runs))
        assert as_bytes(digest_of_slices("slices", 1, runs, slices)) == as_bytes(expected)
