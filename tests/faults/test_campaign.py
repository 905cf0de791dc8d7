"""A short campaign: random participants are killed, stopped and interrupted; ``make campaign`` goes on for longer."""

from __future__ import annotations

import os

import pytest

from tests.faults.campaign.campaign import HALVES, Campaign, available

SEED = int(os.environ.get("CKPT_TEST_SEED", "18"))
ROUNDS = 3


@pytest.mark.parametrize("transports", [("shm",), ("gloo",), available()], ids=["shm", "gloo", "all"])
def test_given_random_disturbances_then_nobody_serves_a_mix_what_is_said_is_true_and_the_next_update_repairs(
    transports: tuple[str, ...],
) -> None:
    with Campaign(SEED, transports) as campaign:
        outcomes = [campaign.round(number) for number in range(ROUNDS)]
    assert not [str(outcome) for outcome in outcomes if outcome.violation]


@pytest.mark.parametrize("transports", [("shm",), ("gloo",)], ids=["shm", "gloo"])
def test_given_random_disturbances_of_staged_updates_then_all_that_live_serve_one_version(
    transports: tuple[str, ...],
) -> None:
    with Campaign(SEED, transports, "staged") as campaign:
        outcomes = [campaign.round(number) for number in range(ROUNDS)]
    assert not [str(outcome) for outcome in outcomes if outcome.violation]


def test_given_random_disturbances_of_deltas_then_all_that_live_serve_one_version() -> None:
    with Campaign(SEED, ("shm",), "staged", "on") as campaign:
        outcomes = [campaign.round(number) for number in range(ROUNDS)]
    assert not [str(outcome) for outcome in outcomes if outcome.violation]


def test_given_random_disturbances_of_deltas_to_engines_with_shares_then_all_that_live_serve_one_version() -> None:
    with Campaign(SEED, ("gloo",), "staged", "on", HALVES) as campaign:
        outcomes = [campaign.round(number) for number in range(ROUNDS)]
    assert not [str(outcome) for outcome in outcomes if outcome.violation]
