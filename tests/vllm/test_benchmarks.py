"""Benchmarks that update a tensor-parallel vLLM run on CPUs, too."""

from __future__ import annotations

import pytest

from benchmarks import sharded_vllm
from benchmarks.end_to_end import NARROW, Device, Name, Scale, measure, vllm_situations

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
        f"{title}: first update, engine and trainer warmed up",
    ]
    assert all(row.ratio > 0 for row in rows)


def test_given_fsdp2_on_two_ranks_when_it_is_measured_then_each_rank_of_vllm_is_as_its_loader_makes_it() -> None:
    """Versions that were published, and one that was gathered, were compared with whole ones on the way."""
    rows = sharded_vllm.measure(2, Device.CPU, rounds=1, layers=1, narrow=NARROW)
    title = "FSDP2 on 2, vLLM TP 2"
    assert [row.name for row in rows] == [
        f"{title}: publish",
        f"{title}: full_tensor and update",
        f"{title}: held by publish",
        f"{title}: first publish after warming up",
    ]
    assert all(row.ratio > 0 for row in rows)
