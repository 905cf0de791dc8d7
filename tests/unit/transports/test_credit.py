"""How memory is given back: at once where a sender waits for it, else of many transfers by one message."""

from __future__ import annotations

import random

import pytest

from ckpt_transport.transports.credit import SAID, Debts, OpenLoans
from ckpt_transport.transports.interface import Transfer


def lent(seq: int, *, reused: bool = False, receivers: int = 4) -> Transfer:
    return Transfer(seq, 0, tuple(range(1, receivers + 1)), (), reused)


def hold(count: int) -> Debts:
    """As many transfers as that, posted and announced."""
    debts = Debts()
    for seq in range(count):
        debts.post(seq)
        debts.hear()
    return debts


def test_given_memory_that_the_sender_waits_for_then_each_transfer_is_given_back_at_once() -> None:
    debts = hold(100)
    assert [debts.give_back(lent(seq, reused=True)) for seq in range(100)] == [(1, seq) for seq in range(100)]


@pytest.mark.parametrize(("receivers", "each"), [(1, 16), (2, 8), (4, 4), (16, 1), (256, 1)])
def test_given_a_sender_that_waits_for_none_of_many_then_few_messages_give_all_back(receivers: int, each: int) -> None:
    debts = hold(640)
    said = [answer for seq in range(640) if (answer := debts.give_back(lent(seq, receivers=receivers))) is not None]
    count = 640 // each
    assert said == [(count, turn * count + count - 1) for turn in range(each)]
    assert len(said) * receivers <= max(SAID, receivers)


def test_given_memory_that_is_waited_for_among_other_then_what_came_before_is_given_back_with_it() -> None:
    debts = hold(100)
    assert [debts.give_back(lent(seq)) for seq in range(10)] == [None] * 10
    assert debts.give_back(lent(10, reused=True)) == (11, 10)


def test_given_few_after_many_then_they_are_given_back_at_once_again() -> None:
    debts = hold(100)
    for seq in range(100):
        debts.give_back(lent(seq))
    for seq in (100, 101):
        debts.post(seq)
        debts.hear()
    assert debts.give_back(lent(100)) == (1, 100)


def test_given_transfers_out_of_their_order_then_each_that_is_early_is_said_by_itself() -> None:
    debts = hold(3)
    assert debts.give_back(lent(2)) == (1, 2)
    assert debts.give_back(lent(1)) == (1, 1)
    assert debts.give_back(lent(0)) == (3, 2)


@pytest.mark.parametrize("seed", range(20))
def test_given_any_order_and_any_pace_then_the_sender_has_all_back_when_the_receivers_have_given_all(seed: int) -> None:
    chance = random.Random(seed)
    count, receivers, waited_for = chance.randrange(1, 200), (3, 5, 8), chance.choice((0.0, 0.1, 1.0))
    loans, debts = OpenLoans(), {receiver: Debts() for receiver in receivers}
    for seq in range(count):
        loans.lend(seq, receivers)
        for mine in debts.values():
            mine.post(seq)
    given_back: dict[int, set[int]] = {receiver: set() for receiver in receivers}
    for receiver, mine in debts.items():
        heard = 0
        left = list(range(count))
        while left:
            for _ in range(chance.randrange(1, 50)):
                if heard < count:
                    mine.hear()
                    heard += 1
            some = [seq for seq in left[: chance.choice((1, 1, 4))] if seq < heard]
            for seq in chance.sample(some, len(some)):
                left.remove(seq)
                given_back[receiver].add(seq)
                said = mine.give_back(lent(seq, reused=chance.random() < waited_for))
                if said is not None:
                    (loans.returned if said[0] == 1 else loans.all_returned)(receiver, said[1])
            if receiver != receivers[-1]:
                assert not loans.are_over(chance.randrange(count)), "somebody has given nothing back"
    assert all(loans.are_over(seq) for seq in range(count))
