"""The benchmark of whole updates runs on a CPU, too."""

from __future__ import annotations

import pytest
import torch

from benchmarks._weighted_sums import weighted_sum
from benchmarks.end_to_end import Device, Name, Scale, measure, situations


def test_given_no_gpu_when_a_small_situation_is_measured_then_each_transport_has_a_row_with_its_figures() -> None:
    rows = measure([Name.HOST_DENSE], Device.CPU, Scale.SMALL, rounds=1)
    title = situations(Device.CPU, Scale.SMALL)[Name.HOST_DENSE].title
    assert [row.name for row in rows] == [f"{title}: auto", f"{title}: shm", f"{title}: auto"]
    assert [row.against for row in rows] == ["a plain copy in memory"] * 2 + ["shm by name"]
    assert all(row.ratio > 0 and "held" in row.detail and "predicted" in row.detail for row in rows[:2])


@pytest.mark.parametrize("name", [Name.LENT_HERE, Name.TWO_DENSE])
def test_given_weights_that_are_lent_or_of_two_trainers_when_they_are_brought_then_every_worker_is_right(
    name: Name,
) -> None:
    (row,) = measure([name], Device.CPU, Scale.SMALL, rounds=1, by=["shm"])
    assert row.name.endswith(": shm")


def test_given_words_that_change_or_trade_places_then_their_weighted_sum_does() -> None:
    words = torch.arange(100_003, dtype=torch.int16)
    found = weighted_sum(words)
    assert weighted_sum(words.clone()) == found
    for places in ([100_002, 100_001], [0, 4], [8, 50_000]):
        traded = words.clone()
        traded[places] = words[places[::-1]]
        assert weighted_sum(traded) != found
    assert weighted_sum(words[1:]) == weighted_sum(words[1:].clone())
