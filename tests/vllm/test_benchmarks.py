"""The benchmark of whole updates has rows of a tensor-parallel vLLM, which run on CPUs, too."""

from __future__ import annotations

import pytest

from benchmarks.end_to_end import Device, Name, Scale, measure, vllm_situations

pytestmark = pytest.mark.alone


@pytest.mark.parametrize("name", [Name.VLLM_TWO_LENT, Name.VLLM_TWO_POOL])
def test_given_a_small_vllm_of_two_ranks_when_it_is_measured_then_each_transport_has_a_row(name: Name) -> None:
    """Every parameter of every rank was compared on the way."""
    title = vllm_situations(Device.CPU)[name].title
    rows = measure([name], Device.CPU, Scale.SMALL, rounds=1)
    assert [row.name for row in rows] == [
        f"{title}: auto",
        f"{title}: shm",
        f"{title}: auto",
        f"{title}: first update after warming up",
    ]
    assert all(row.ratio > 0 for row in rows)
