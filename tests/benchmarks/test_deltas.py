"""The benchmarks of deltas run, and what they say holds."""

from __future__ import annotations

import pytest

from benchmarks import delta_fp8, delta_gpu, delta_passes, delta_shares, deltas, sparsity


def test_given_a_small_range_then_each_step_of_each_delta_has_a_rate() -> None:
    rows = deltas.measure(mib=1, rounds=1)
    assert len(rows) == 3 * len(deltas.SHARES) - 2
    assert [row.name for row in rows][:4] == [
        "diff, 0% changed",
        "diff, 1% changed",
        "decode and locate, 1% changed",
        "commit, or roll back, 1% changed",
    ]


def test_given_the_passes_of_a_diff_then_they_find_what_it_finds_and_each_has_a_time() -> None:
    rows = delta_passes.measure(mib=1, rounds=1)
    assert [row.name for row in rows if row.target] == ["all passes, 1% changed", "all passes, 5% changed"]


def test_given_fp8_of_a_trainer_then_each_way_to_compare_it_brings_what_a_full_update_brings() -> None:
    names = [row.name for row in delta_fp8.measure(mib=8, rounds=1)]
    assert names == [
        f"publish FP8, base '{base}', {share} changed" for share in ("1%", "5%") for base in ("host", "beside")
    ]


def test_given_two_ranks_then_each_density_is_divided_and_no_element_is_lost() -> None:
    rows = delta_shares.measure(mib=32, rounds=1)
    assert [row.name for row in rows] == [f"divide, {density:.0%} changed" for density in delta_shares.DENSITIES]


def test_given_two_learning_rates_then_the_larger_changes_more_and_fp8_less_than_bf16() -> None:
    found, went = sparsity.measure((1e-6, 1e-4), 2, sparsity.SKIPPED + 2)
    low, high = found.values()
    assert all(0 <= share <= 1 for shares in found.values() for each in shares.values() for share in each)
    assert max(low["BF16 all"]) < min(high["BF16 all"])
    assert max(high["FP8 all"]) < min(high["BF16 all"])
    assert set(went) == set(found)


@pytest.mark.parametrize("weights", delta_gpu.Served)
def test_given_a_small_module_then_its_deltas_are_timed_committed_and_taken_back(weights: delta_gpu.Served) -> None:
    said: list[str] = []
    scale = delta_gpu.Scale(small=True, model="mixture", layers=1, rounds=1)
    rows = list(delta_gpu.in_module(scale, weights, said.append))
    made = ["FP8 of BF16"] if weights is delta_gpu.Served.FP8 else []
    assert [row.name.partition(",")[0] for row in rows[: len(rows) // 2]] == [
        *made,
        "diff",
        "bytes on the wire",
        "decode and locate",
        "held: commit with undo",
        "held: rollback",
        "proof before a rollback",
    ]
    assert all(row.ratio <= 1.01 for row in rows if row.name.startswith("bytes"))
    assert "5% changed: measured" in said
