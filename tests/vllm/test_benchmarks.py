"""Benchmarks that update a tensor-parallel vLLM run on CPUs, too."""

from __future__ import annotations

import pytest

from benchmarks import sharded_vllm
from benchmarks._attempts import Attempts
from benchmarks.end_to_end import NARROW, Chosen, Device, Name, Scale, measure, vllm_situations

pytestmark = pytest.mark.alone


@pytest.mark.parametrize("name", [Name.VLLM_TWO_LENT, Name.VLLM_TWO_POOL])
def test_given_a_small_vllm_of_two_ranks_when_it_is_measured_then_one_start_of_it_gives_a_row_for_each_variant(
    name: Name,
) -> None:
    """Every parameter of every rank was compared on the way."""
    attempts, chosen = Attempts(), Chosen(Device.CPU, Scale.SMALL)
    title = vllm_situations(chosen)[name].title
    rows = list(measure([name], chosen, rounds=1, attempts=attempts))
    staged = f"{title}: auto, staged if possible"
    assert [row.name for row in rows] == [
        staged,
        f"{staged}, first update, engine and trainer warmed up",
        f"{title}: auto, in place",
        f"{title}: shm, staged if possible",
        staged,
    ]
    assert all(row.ratio > 0 for row in rows)
    assert "wrong: 0 of" in rows[0].detail
    assert rows[0].phases["median"]["run"] > 0
    assert attempts.failed == []


def test_given_fsdp2_on_two_ranks_when_it_is_measured_then_each_rank_of_vllm_is_as_its_loader_makes_it() -> None:
    """Versions that were published, and one that was gathered, were compared with whole ones on the way."""
    attempts = Attempts()
    rows = list(sharded_vllm.measure(2, Device.CPU, 1, layers=1, narrow=NARROW, attempts=attempts))
    title = "FSDP2 on 2, vLLM TP 2"
    assert [row.name for row in rows] == [
        f"{title}: publish",
        f"{title}: held by publish",
        f"{title}: first publish, engine warmed up",
        f"{title}: full_tensor and update",
    ]
    assert all(row.ratio > 0 for row in rows)
    assert attempts.failed == []
