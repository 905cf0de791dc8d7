"""What members have answered, in words and pictures."""

from __future__ import annotations

from typing import Any

import pytest

from ckpt_transport.dashboard import pictures, view
from ckpt_transport.dashboard.fleet_watch import Look, Member
from ckpt_transport.execution import Arrival
from ckpt_transport.service.questions import ServedVersion


def member(done: int, *, update: str = "v2", place: str = "a", **said: Any) -> Member:
    arrivals = (Arrival("source 0", "shm", done, 400),) if update else ()
    served = ServedVersion(f"sink {place}", "v1", "", update, state="is connected", arrivals=arrivals)
    return Member(
        place,
        place,
        served if not said else ServedVersion(f"sink {place}", "v1", **{"tainted": "", "update": "", **said}),
    )


def test_given_two_looks_then_the_rate_of_a_link_is_what_came_between_them() -> None:
    before = Look(10.0, (member(100), member(0, place="b")))
    (update,) = view.running(Look(12.0, (member(300), member(50, place="b")), before))
    assert [(link.receiver, link.done, link.percent, link.rate) for link in update.links] == [
        ("sink a", 300, 75, 100.0),
        ("sink b", 50, 12, 25.0),
    ]
    assert (update.version, update.percent, update.steps) == ("v2", 43, (("bytes come in", 2),))


def test_given_the_first_look_or_another_update_then_no_rate_is_made_up() -> None:
    (update,) = view.running(Look(12.0, (member(300),)))
    assert update.links[0].rate == 0
    (update,) = view.running(Look(12.0, (member(300),), Look(10.0, (member(400, update="v1"),))))
    assert update.links[0].rate == 150.0


@pytest.mark.parametrize(
    ("said", "mood", "state"),
    [
        ({}, "busy", "gets v2"),
        ({"tainted": "a mix"}, "bad", "tainted"),
        ({"in_doubt": "who knows"}, "bad", "in doubt"),
        ({"stuck": "load"}, "bad", "takes no update"),
        ({"warm_up": "has warmed up"}, "good", "serves"),
    ],
)
def test_given_what_a_member_says_then_its_row_says_how_it_is(said: dict[str, str], mood: str, state: str) -> None:
    (row,) = view.member_rows(Look(0.0, (member(1, **said),)))
    assert (row.mood, row.state) == (mood, state)


def test_given_sinks_that_have_not_kept_the_same_then_the_fleet_cannot_go_back() -> None:
    same = [member(0, place=place, previous="v0") for place in "ab"]
    assert view.can_go_back(Look(0.0, tuple(same))) == "v0"
    for other in (member(0, place="c", previous="v"), member(0, place="c", previous=""), Member("c", silence="dead")):
        assert view.can_go_back(Look(0.0, (*same, other))) == ""
    assert view.can_go_back(Look(0.0, ())) == ""


@pytest.mark.parametrize(
    ("value", "words"),
    [(-1.0, "0 s"), (59.0, "59 s"), (119.0, "119 s"), (120.0, "2 min"), (7200.0, "2 h"), (2e5, "2 d")],
)
def test_given_an_age_then_it_is_written_in_the_unit_that_says_enough(value: float, words: str) -> None:
    assert view.age(value) == words


def test_given_phases_then_their_picture_fills_its_width_and_loses_none() -> None:
    drawn = pictures.phases({"plan": 0.0, "join": 1e-6, "run": 1.0, "hold": 0.5, "commit": 1e-7, "end": 0.5})
    assert [each.kind for each in drawn] == ["prepare", "move", "hold", "hold", "prepare"]
    assert [each.held for each in drawn] == [False, False, True, True, False]
    assert all(each.width >= pictures.THIN and each.x + each.width <= pictures.WIDTH + 1e-6 for each in drawn)
    assert pictures.phases({}) == []
