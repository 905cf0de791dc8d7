"""Sets of ranges behave as sets of bytes."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.planning import ByteRangeSet

SIZE = 40
RUNS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, SIZE - 1), st.integers(1, SIZE)).map(
        lambda run: (run[0], run[1], min(run[2], SIZE - run[1]))
    ),
    max_size=12,
)


def positions(runs: object) -> set[tuple[str, int]]:
    return {(name, at) for name, start, nbytes in runs for at in range(start, start + nbytes)}  # type: ignore[attr-defined]


@given(RUNS)
def test_given_what_was_added_then_it_is_in_it_in_ranges_that_do_not_touch(added: list[tuple[str, int, int]]) -> None:
    runs = ByteRangeSet(added)
    assert positions(runs) == positions(added)
    found = list(runs)
    for (name, start, nbytes), (other, behind, _) in itertools.pairwise(found):
        assert name != other or start + nbytes < behind
    assert bool(runs) == bool(added)


@given(RUNS, st.sampled_from("abc"), st.integers(0, SIZE), st.integers(0, SIZE))
def test_given_a_set_of_ranges_then_what_it_lacks_is_the_rest(
    added: list[tuple[str, int, int]], name: str, start: int, nbytes: int
) -> None:
    lacking = ByteRangeSet(added).missing(name, start, nbytes)
    found = {(name, at) for low, high in lacking for at in range(low, high)}
    assert found == {(name, at) for at in range(start, start + nbytes)} - positions(added)
    assert lacking == sorted(lacking)


@given(RUNS, RUNS)
def test_given_two_sets_of_ranges_then_what_they_have_in_common_is_the_intersection(
    one: list[tuple[str, int, int]], two: list[tuple[str, int, int]]
) -> None:
    common = ByteRangeSet(one).intersection(ByteRangeSet(two))
    assert positions(common) == positions(one) & positions(two)
    assert common == ByteRangeSet(two).intersection(ByteRangeSet(one))


def test_given_an_empty_tensor_then_it_is_there_or_not() -> None:
    nothing, there = ByteRangeSet(), ByteRangeSet([("empty", 0, 0)])
    assert nothing.missing("empty", 0, 0)
    assert not there.missing("empty", 0, 0)
    assert there.covers({"empty": 0})
    assert not nothing.covers({"empty": 0})
    assert list(there.intersection(ByteRangeSet([("empty", 0, 0), ("a", 0, 3)]))) == [("empty", 0, 0)]
    assert not list(there.intersection(nothing))
