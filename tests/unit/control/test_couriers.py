"""Who talks to many has couriers, which hand on what it says and bring the answers back together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ckpt_transport.control import Mailbox, courier, couriers
from ckpt_transport.control.courier import Combined
from ckpt_transport.control.couriers import FAN_OUT, LARGE_BYTES, in_groups
from ckpt_transport.control.messages import Delivery, Dispatch, Message, Refused
from tests.unit.control.notes import PATIENCE, Note, next_note, until

MEMBERS = 4


class Fleet:
    """Somebody who talks to members, of which the first is the courier.

    Args:
        groups: of members, each with its courier first.

    Attributes:
        leader: who talks to them.
        members: all of them.
    """

    def __init__(self, stack: ExitStack, groups: int = 1) -> None:
        self.leader = stack.enter_context(Mailbox(types=[Note], timeout=PATIENCE))
        self.members = [stack.enter_context(Mailbox(types=[Note], timeout=PATIENCE)) for _ in range(MEMBERS * groups)]
        for member in self.members:
            member.watch(self.leader.address)
            self.leader.watch(member.address)
        self.addresses = [member.address for member in self.members]
        self.groups = [self.addresses[first : first + MEMBERS] for first in range(0, MEMBERS * groups, MEMBERS)]

    def pump(self) -> None:
        for mailbox in (*self.members, self.leader):
            mailbox.pump(0)

    def find_couriers(self) -> None:
        """Plan, and let what was seen to work be used."""
        self.leader.by_courier.plan(self.groups)
        until(lambda: self.pump() or len(self.leader.by_courier._couriers.near.seen) == len(self.members))  # type: ignore[func-returns-value]
        self.leader.by_courier.plan(self.groups)

    def ask(self, *texts: str) -> None:
        self.leader.by_courier.ask_each(
            (address, self.leader.encode(Note(text))) for address, text in zip(self.addresses, texts, strict=True)
        )

    def heard(self, mailbox: Mailbox) -> tuple[str, Message]:
        """What comes next there; the others go on meanwhile."""
        found: list[tuple[str, Message]] = []

        def look() -> bool:
            self.pump()
            received = mailbox.receive(0)
            if received is not None:
                mailbox.believe()
                found.append(received)
            return bool(found)

        until(look)
        return found[0]


def _heard_in(delivery: Delivery) -> int:
    """How many say something in it."""
    return sum(len(senders) for senders, _ in delivery.parts)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(stack)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Message]]:
    """Where messages were sent straight, and what; couriers wait for as long as it takes."""
    monkeypatch.setattr(courier, "HOLD_SECONDS", PATIENCE)
    found: list[tuple[str, Message]] = []
    send = Mailbox.send

    def heard(mailbox: Mailbox, address: str, message: Message) -> None:
        found.append((address, message))
        send(mailbox, address, message)

    monkeypatch.setattr(Mailbox, "send", heard)
    return found


def test_given_many_addresses_then_no_group_is_larger_than_one_courier_talks_to() -> None:
    for count in (FAN_OUT + 1, 256, 1000):
        addresses = [f"ipc:///{number}" for number in range(count)]
        groups = list(in_groups([addresses]))
        assert [address for group in groups for address in group] == addresses
        assert max(map(len, groups)) <= FAN_OUT
        assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert list(in_groups([("a", "b")] * FAN_OUT)) == [("a", "b")] * FAN_OUT, "each of one host"
    assert not list(in_groups([("a", "b")] * (FAN_OUT // 2))), "few need none"


def test_given_a_courier_then_each_hears_its_own_and_all_answers_come_in_one_message(
    said: list[tuple[str, Message]], fleet: Fleet
) -> None:
    fleet.find_couriers()
    said.clear()
    texts = [f"to {number}" for number in range(MEMBERS)]
    fleet.ask(*texts)
    for member, text in zip(fleet.members, texts, strict=True):
        assert fleet.heard(member) == (fleet.leader.address, Note(text))
        member.by_courier.answer(fleet.leader.address, Note(f"answer {text}"))
    answers = dict(fleet.heard(fleet.leader) for _ in range(MEMBERS))
    assert answers == {address: Note(f"answer {text}") for address, text in zip(fleet.addresses, texts, strict=True)}
    dispatches = [address for address, message in said if isinstance(message, Dispatch)]
    deliveries = [_heard_in(message) for _, message in said if isinstance(message, Delivery)]
    assert dispatches == [fleet.addresses[0]]
    assert deliveries == [1] * (MEMBERS - 1) + [MEMBERS]


def _with_couriers_of_couriers(stack: ExitStack) -> Fleet:
    """Three groups, of which the courier of one was seen to be reached by another's."""
    fleet = Fleet(stack, groups=3)
    fleet.find_couriers()
    known = fleet.leader.by_courier._couriers.far
    until(lambda: fleet.pump() or len(known.seen) == 1)  # type: ignore[func-returns-value]
    fleet.leader.by_courier.plan(fleet.groups)
    return fleet


def test_given_more_couriers_than_one_talks_to_then_some_of_them_are_talked_to_by_others(
    said: list[tuple[str, Message]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(couriers, "FAN_OUT", 2)
    with ExitStack() as stack:
        fleet = _with_couriers_of_couriers(stack)
        for _ in range(2):
            said.clear()
            texts = [f"to {number}" for number in range(len(fleet.members))]
            fleet.ask(*texts)
            for member, text in zip(fleet.members, texts, strict=True):
                assert fleet.heard(member) == (fleet.leader.address, Note(text))
                member.by_courier.mention(fleet.leader.address, member.encode(Note("by the way")))
                member.by_courier.answer(fleet.leader.address, Note(f"answer {text}"))
            heard = [fleet.heard(fleet.leader) for _ in range(2 * len(texts))]
            assert sorted(heard, key=str) == sorted(
                (
                    (address, Note(answer))
                    for address, text in zip(fleet.addresses, texts, strict=True)
                    for answer in (f"answer {text}", "by the way")
                ),
                key=str,
            )
            talked_to = {address for address, message in said if isinstance(message, Dispatch)}
            assert talked_to == {fleet.groups[0][0], fleet.groups[1][0]}
            to_leader = [address for address, _ in said if address == fleet.leader.address]
            assert len(to_leader) == 2, "one from each that is talked to"


def test_given_a_courier_of_couriers_that_is_forgotten_then_those_behind_it_are_talked_to_straight(
    said: list[tuple[str, Message]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(couriers, "FAN_OUT", 2)
    with ExitStack() as stack:
        fleet = _with_couriers_of_couriers(stack)
        fleet.leader.forget(fleet.groups[1][0])
        said.clear()
        fleet.ask(*("hello",) * len(fleet.members))
        for member in fleet.members:
            assert fleet.heard(member) == (fleet.leader.address, Note("hello"))
        talked_to = {address for address, message in said if isinstance(message, Dispatch)}
        assert talked_to == {fleet.groups[0][0], fleet.groups[2][0]}


def test_given_couriers_here_and_elsewhere_then_none_is_asked_to_reach_a_socket_of_another_host() -> None:
    here, elsewhere = ([[f"{kind}:///{n}"] for n in range(FAN_OUT)] for kind in ("ipc", "tcp"))
    known = couriers.Couriers(lambda dispatch: (b"",))
    for head, reached in known.plan([*here, *elsewhere]).items():
        assert {address[:3] for address in reached} == {head[:3]}


def test_given_several_that_say_alike_then_it_travels_once_and_what_each_says_keeps_its_order() -> None:
    said = Combined()
    for who, body in (("a", b"1"), ("b", b"2"), ("b", b"1"), ("a", b"2"), ("c", b"1"), ("a", b"2"), ("c", b"2")):
        said.add(who, body)
    parts = said.delivery().parts
    heard = {who: [body for whose, body in parts if who in whose] for who in "abc"}
    assert heard == {"a": [b"1", b"2", b"2"], "b": [b"2", b"1"], "c": [b"1", b"2"]}
    assert len(parts) < 7


def test_given_one_that_does_not_answer_then_what_the_others_say_comes_all_the_same(fleet: Fleet) -> None:
    fleet.find_couriers()
    fleet.ask(*("",) * MEMBERS)
    for member in fleet.members:
        fleet.heard(member)
    for member in fleet.members[:-1]:
        member.by_courier.answer(fleet.leader.address, Note("here"))
    assert {fleet.heard(fleet.leader)[0] for _ in range(MEMBERS - 1)} == set(fleet.addresses[:-1])


def test_given_what_can_wait_then_it_travels_with_the_answer(said: list[tuple[str, Message]], fleet: Fleet) -> None:
    fleet.find_couriers()
    fleet.ask(*("",) * MEMBERS)
    said.clear()
    for member in fleet.members:
        fleet.heard(member)
        member.by_courier.mention(fleet.leader.address, member.encode(Note("by the way")))
        member.by_courier.answer(fleet.leader.address, Note("answer"))
    heard = [fleet.heard(fleet.leader) for _ in range(2 * MEMBERS)]
    assert sorted(heard, key=str) == sorted(
        ((address, Note(text)) for address in fleet.addresses for text in ("answer", "by the way")), key=str
    )
    assert sum(address == fleet.leader.address for address, _ in said) <= 2


def test_given_no_courier_that_was_seen_to_work_then_everything_goes_straight(
    said: list[tuple[str, Message]], fleet: Fleet
) -> None:
    """The courier has not brought anything yet."""
    fleet.leader.by_courier.plan([fleet.addresses])
    said.clear()
    fleet.ask(*("straight",) * MEMBERS)
    assert not said, "as frames, and not by a courier"
    for member in fleet.members:
        assert fleet.heard(member) == (fleet.leader.address, Note("straight"))


def test_given_a_member_that_a_courier_does_not_reach_then_it_is_talked_to_straight(fleet: Fleet) -> None:
    """Given a member that does not watch whoever talks to it, and takes nothing of it from a courier."""
    fleet.members[-1].unwatch(fleet.leader.address)
    fleet.leader.by_courier.plan([fleet.addresses])
    until(lambda: fleet.pump() or len(fleet.leader.by_courier._couriers.near.seen) == MEMBERS - 1)  # type: ignore[func-returns-value]
    fleet.leader.by_courier.plan([fleet.addresses])
    fleet.ask(*("hello",) * MEMBERS)
    for member in fleet.members:
        assert fleet.heard(member) == (fleet.leader.address, Note("hello"))


def test_given_something_long_then_it_goes_straight(said: list[tuple[str, Message]], fleet: Fleet) -> None:
    fleet.find_couriers()
    said.clear()
    long = "x" * (LARGE_BYTES + 1)
    fleet.ask(*(long,) * MEMBERS)
    assert not said
    for member in fleet.members:
        assert fleet.heard(member) == (fleet.leader.address, Note(long))
        member.by_courier.answer(fleet.leader.address, Note(long))
    for _ in range(MEMBERS):
        assert fleet.heard(fleet.leader)[1] == Note(long)


def test_given_a_straight_word_after_one_by_courier_then_it_is_answered_straight(
    said: list[tuple[str, Message]], fleet: Fleet
) -> None:
    fleet.find_couriers()
    fleet.ask(*("by courier",) * MEMBERS)
    member = fleet.members[-1]
    fleet.heard(member)
    fleet.leader.send(member.address, Note("straight"))
    assert fleet.heard(member) == (fleet.leader.address, Note("straight"))
    said.clear()
    member.by_courier.answer(fleet.leader.address, Note("answer"))
    assert not said
    received = next_note(fleet.leader)
    assert received == (member.address, Note("answer"))


def test_given_what_is_refused_then_who_has_said_it_is_told(fleet: Fleet) -> None:
    """Given a refusal by a member, which counts only from where the words went, when a courier brings it."""
    fleet.find_couriers()
    fleet.ask(*("",) * MEMBERS)
    for member in fleet.members:
        fleet.heard(member)
        member.refuse("not now", "that")
    refused = dict(fleet.heard(fleet.leader) for _ in range(MEMBERS))
    assert refused == dict.fromkeys(fleet.addresses, Refused("not now", "that"))


def test_given_a_stranger_then_nothing_is_handed_on_for_it_and_nothing_it_brings_is_taken(fleet: Fleet) -> None:
    first, member = fleet.members[0], fleet.members[1]
    with Mailbox(types=[Note]) as stranger:
        body = stranger.encode(Note("forged"))[-1]
        stranger.send(first.address, Dispatch((((member.address,), body),), answered=False))
        stranger.send(member.address, Delivery((((stranger.address,), body),)))
        stranger.send(member.address, Note("last"))
        assert fleet.heard(member) == (stranger.address, Note("last"))


def test_given_something_brought_that_is_no_message_then_who_has_said_it_is_told(fleet: Fleet) -> None:
    fleet.find_couriers()
    fleet.leader.send(fleet.addresses[0], Dispatch((((fleet.addresses[1],), b"\xff"),), answered=True))
    sender, refused = fleet.heard(fleet.leader)
    assert sender == fleet.addresses[1]
    assert isinstance(refused, Refused)
    assert "unreadable" in refused.reason


def test_given_more_answers_than_a_courier_holds_then_they_go_at_once(fleet: Fleet) -> None:
    fleet.find_couriers()
    fleet.ask(*("",) * MEMBERS)
    for member in fleet.members:
        fleet.heard(member)
    piece = "x" * (LARGE_BYTES - 100)
    for _ in range(2 * courier.HELD_BYTES // LARGE_BYTES):
        fleet.members[1].by_courier.mention(fleet.leader.address, fleet.members[1].encode(Note(piece)))
    assert fleet.heard(fleet.leader) == (fleet.addresses[1], Note(piece))


def test_given_members_that_are_forgotten_then_they_are_talked_to_straight_and_so_are_those_behind_them(
    said: list[tuple[str, Message]], fleet: Fleet
) -> None:
    fleet.find_couriers()
    fleet.leader.forget(fleet.addresses[0])
    said.clear()
    fleet.ask(*("straight",) * MEMBERS)
    assert not said
    for member in fleet.members:
        assert fleet.heard(member) == (fleet.leader.address, Note("straight"))


def test_given_a_stranger_that_brings_words_of_another_then_what_that_one_is_told_does_not_go_to_the_stranger(
    fleet: Fleet,
) -> None:
    member = fleet.members[1]
    with Mailbox(types=[Note]) as stranger:
        body = stranger.encode(Note("forged"))[-1]
        stranger.send(member.address, Delivery((((fleet.leader.address,), body),)))
        assert next_note(member) == (fleet.leader.address, Note("forged")), "and whoever reads it does not believe it"
        member.by_courier.answer(fleet.leader.address, Note("answer"))
        assert fleet.heard(fleet.leader) == (member.address, Note("answer"))


def test_given_somebody_who_has_a_courier_hand_on_to_very_many_then_few_of_them_are_talked_to(fleet: Fleet) -> None:
    parts = tuple(((f"ipc:///tmp/nobody-{number}",), b"") for number in range(1000))
    fleet.leader.send(fleet.addresses[0], Dispatch(parts, answered=False))
    first = fleet.members[0]
    until(lambda: first.pump(0.01) or len(first._sockets.connections) > 0)
    assert len(first._sockets.connections) <= courier.MOST_ADDRESSES


def test_given_a_long_answer_then_it_comes_with_the_others_for_which_its_courier_waits(
    said: list[tuple[str, Message]], fleet: Fleet
) -> None:
    fleet.find_couriers()
    fleet.ask(*("",) * MEMBERS)
    said.clear()
    for member in fleet.members:
        fleet.heard(member)
        member.by_courier.answer(fleet.leader.address, Note("x" * (LARGE_BYTES + 1)))
    assert {fleet.heard(fleet.leader)[0] for _ in range(MEMBERS)} == {*fleet.addresses}
    deliveries = [message for address, message in said if address == fleet.leader.address]
    assert [_heard_in(message) for message in deliveries if isinstance(message, Delivery)] == [MEMBERS]
    assert [len(message.parts) for message in deliveries if isinstance(message, Delivery)] == [1], "said alike"
