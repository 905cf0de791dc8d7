"""What leaves FSDP2's ranks and reaches an engine's, in every layout that the benchmark has, is the least."""

from __future__ import annotations

from benchmarks import shard_bytes


def test_given_ranks_of_fsdp2_and_of_an_engine_then_plans_move_no_byte_more_than_the_layouts_need() -> None:
    rows = shard_bytes.measure()
    assert len(rows) == 12
    assert {row.name: f"{row.ratio:.2f}" for row in rows if f"{row.ratio:.2f}" != "1.00"} == {}
