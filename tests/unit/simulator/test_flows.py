"""Flows that share links."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.simulator.events import Activity, Clock
from ckpt_transport.simulator.flows import SharedLink


def run(*activities: Activity) -> list[float]:
    """When each of them has ended."""
    Clock().run(activities)
    return [activity.ended for activity in activities]


def moving(nbytes: float, *links: SharedLink, seconds: float = 0.0) -> Activity:
    return Activity((), seconds, nbytes, dict.fromkeys(links, 1.0))


def test_given_one_flow_then_it_is_as_fast_as_its_narrowest_link() -> None:
    assert run(moving(100, SharedLink("wide", 50), SharedLink("narrow", 10))) == [10.0]


def test_given_two_flows_on_one_link_then_each_gets_half_until_one_has_ended() -> None:
    link = SharedLink("link", 10)
    assert run(moving(100, link), moving(50, link)) == pytest.approx([15.0, 10.0])
    assert link.crossed == pytest.approx(150)


def test_given_a_flow_that_another_link_holds_back_then_the_others_get_what_it_leaves() -> None:
    shared, narrow = SharedLink("shared", 10), SharedLink("narrow", 2)
    assert run(moving(20, shared, narrow), moving(40, shared), moving(40, shared)) == pytest.approx([10, 10, 10])


def test_given_bytes_that_cross_a_link_twice_then_it_is_half_as_fast() -> None:
    assert run(Activity((), 0.0, 100, {SharedLink("memory", 10): 2.0})) == [20.0]


def test_given_a_latency_then_it_comes_before_the_bytes() -> None:
    assert run(moving(100, SharedLink("link", 10), seconds=2.0)) == [12.0]


def test_given_a_flow_that_begins_later_then_the_first_slows_down_from_then_on() -> None:
    link = SharedLink("link", 10)
    assert run(moving(100, link), moving(100, link, seconds=5.0)) == pytest.approx([15.0, 20.0])


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[float], list[tuple[float, float, list[int]]]]:
    """Rates of links; and when flows begin, how many bytes they have and which links they cross."""
    rates = draw(st.lists(st.floats(1, 100), min_size=1, max_size=5))
    numbers = st.integers(0, len(rates) - 1)
    flows = st.tuples(st.floats(0, 5), st.floats(1, 1000), st.lists(numbers, min_size=1, max_size=3, unique=True))
    return rates, draw(st.lists(flows, min_size=1, max_size=8))


def times(rates: list[float], flows: list[tuple[float, float, list[int]]]) -> tuple[list[float], list[SharedLink]]:
    links = [SharedLink(number, rate) for number, rate in enumerate(rates)]
    activities = [moving(nbytes, *(links[each] for each in path), seconds=start) for start, nbytes, path in flows]
    return run(*activities), links


@given(worlds())
def test_given_any_flows_then_all_bytes_arrive_and_no_link_is_faster_than_its_rate(
    world: tuple[list[float], list[tuple[float, float, list[int]]]],
) -> None:
    rates, flows = world
    ends, links = times(rates, flows)
    for number, link in enumerate(links):
        crossed = sum(nbytes for _, nbytes, path in flows if number in path)
        assert link.crossed == pytest.approx(crossed)
        assert link.crossed <= link.rate * max(ends) * (1 + 1e-6)
    for end, (start, nbytes, path) in zip(ends, flows, strict=True):
        assert end >= start + nbytes / min(rates[each] for each in path) - 1e-6


@given(worlds(), st.floats(1, 10))
def test_given_all_links_are_faster_then_no_flow_that_begins_at_once_ends_later(
    world: tuple[list[float], list[tuple[float, float, list[int]]]], factor: float
) -> None:
    rates, flows = world
    at_once = [(0.0, nbytes, path) for _, nbytes, path in flows]
    slow, fast = times(rates, at_once)[0], times([rate * factor for rate in rates], at_once)[0]
    assert fast == pytest.approx([end / factor for end in slow], rel=1e-6)


@given(st.floats(1, 100), st.floats(1, 10), st.lists(st.floats(1, 1000), min_size=1, max_size=8))
def test_given_one_link_that_is_faster_then_nothing_on_it_ends_later(
    rate: float, factor: float, sizes: list[float]
) -> None:
    slow, fast = SharedLink("slow", rate), SharedLink("fast", rate * factor)
    before, after = run(*(moving(size, slow) for size in sizes)), run(*(moving(size, fast) for size in sizes))
    assert all(later >= earlier - 1e-9 for later, earlier in zip(before, after, strict=True))
