"""Tensors that lie next to each other in a pool are one run, which holds nothing of other tensors."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.checkpoint.gathered_copies import GAP_BYTES, PoolRun, runs_of

MIB = 1 << 20


def test_given_tensors_one_behind_the_other_then_they_are_one_run() -> None:
    assert runs_of([512, 768, 1792], [200, 1000, 8]) == [PoolRun(512, 1288, 1208)]


def test_given_room_for_another_tensor_between_two_then_they_are_two_runs() -> None:
    assert runs_of([0, 768], [256, 10]) == [PoolRun(0, 256, 256), PoolRun(768, 10, 10)]


def test_given_a_large_tensor_then_it_is_cut() -> None:
    assert runs_of([0], [150 * MIB], 64 * MIB) == [
        PoolRun(0, 64 * MIB, 64 * MIB),
        PoolRun(64 * MIB, 64 * MIB, 64 * MIB),
        PoolRun(128 * MIB, 22 * MIB, 22 * MIB),
    ]


@given(
    st.lists(st.tuples(st.integers(0, 600), st.integers(1, 3000)), min_size=1, max_size=12),
    st.sampled_from([256, 512, 1000, 4096]),
)
def test_given_any_tensors_then_each_byte_is_in_one_run_and_no_byte_of_another_tensor_is(
    gaps_and_sizes: list[tuple[int, int]], longest: int
) -> None:
    offsets, sizes, end = [], [], 0
    for gap, nbytes in gaps_and_sizes:
        offsets.append(end + gap)
        sizes.append(nbytes)
        end += gap + nbytes
    runs = runs_of(offsets, sizes, longest)
    owned = {at for offset, nbytes in zip(offsets, sizes, strict=True) for at in range(offset, offset + nbytes)}
    covered = [at for run in runs for at in range(run.start, run.start + run.nbytes)]
    assert len(covered) == len(set(covered))
    assert owned <= set(covered)
    assert all(run.nbytes <= longest for run in runs)
    for run in runs:
        assert run.tensor_bytes == len(owned.intersection(range(run.start, run.start + run.nbytes)))
    apart = [
        at
        for (gap, _), start in zip(gaps_and_sizes, offsets, strict=True)
        if gap >= GAP_BYTES
        for at in range(start - gap, start)
    ]
    assert not set(apart).intersection(covered)
