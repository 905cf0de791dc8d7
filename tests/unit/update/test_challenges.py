"""Who may invite: who has read a nonce at the address that it names, or the welcome that went there before."""

from __future__ import annotations

from ckpt_transport.update import messages as m
from ckpt_transport.update.challenges import Challenges, Welcomes

LEADER, OTHER = "ipc:///leader", "ipc:///other"


def invite(update: str, nonce: str) -> m.Invite:
    return m.Invite(update, "v2", "ipc:///sink", (), nonce=nonce)


def test_given_a_nonce_for_one_update_then_it_is_worth_nothing_for_another_or_from_elsewhere() -> None:
    challenges = Challenges()
    nonce = challenges.nonce(LEADER, "u")
    assert challenges.is_met(LEADER, invite("u", nonce))
    assert not challenges.is_met(LEADER, invite("w", nonce))
    assert not challenges.is_met(OTHER, invite("u", nonce))
    assert not challenges.is_met(LEADER, invite("u", ""))


def test_given_a_welcome_then_it_counts_for_whatever_comes_next_from_there_and_not_after_that() -> None:
    challenges = Challenges()
    welcome = challenges.welcome(LEADER)
    assert challenges.is_met(LEADER, invite("u", welcome))
    assert challenges.is_met(LEADER, invite("w", welcome))
    assert not challenges.is_met(OTHER, invite("u", welcome))
    challenges.renew()
    assert not challenges.is_met(LEADER, invite("u", welcome))


def test_given_welcomes_when_they_were_taken_then_they_are_gone() -> None:
    welcomes = Welcomes()
    welcomes.remember("ipc:///a", "one")
    welcomes.remember("ipc:///b", "")
    assert welcomes.take(["ipc:///a", "ipc:///b", "ipc:///c"]) == {"ipc:///a": "one"}
    assert welcomes.take(["ipc:///a"]) == {}
