"""Rank and world size, from arguments and the environment."""

from __future__ import annotations

import pytest

from ckpt_transport.errors import ConfigError
from ckpt_transport.service.world import World


def test_given_arguments_then_they_overrule_the_environment() -> None:
    environ = {"RANK": "2", "WORLD_SIZE": "4"}
    assert World.find(None, None, environ) == World(2, 4, "WORLD_SIZE=4")
    assert World.find(0, 1, environ) == World(0, 1, "world_size=1")
    assert World.find(None, None, {}) == World(0, 1, "WORLD_SIZE is not set")


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
@pytest.mark.parametrize("text", ["", "two", "1.0"])
def test_given_what_is_no_number_then_it_is_named_with_the_cure(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} in the environment is '{text}' .* pass rank=0, world_size=1"):
        World.find(None, None, {"RANK": "0", "WORLD_SIZE": "1", name: text})


def test_given_a_rank_outside_the_world_then_both_are_named_with_where_they_come_from() -> None:
    with pytest.raises(ConfigError, match=r"rank 3 is not one of 1 sources \(RANK=3, WORLD_SIZE is not set\)"):
        World.find(None, None, {"RANK": "3"})
    with pytest.raises(ConfigError, match=r"rank -1 is not one of 2 sources \(rank=-1, world_size=2\)"):
        World.find(-1, 2, {})


def test_given_who_is_waited_for_then_it_is_said_with_the_cure() -> None:
    four, two = World.find(None, None, {"WORLD_SIZE": "4"}), World.find(0, 2, {})
    cure = "for one source pass rank=0, world_size=1 (--rank 0 --world-size 1)"
    assert four.expectation == f"3 other sources are expected because WORLD_SIZE=4; {cure}"
    assert two.expectation == f"1 other source is expected because world_size=2; {cure}"
