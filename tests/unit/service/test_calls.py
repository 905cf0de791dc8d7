"""Given source ranks that took part in an update, then they come to the next one when they are called, and look for it
only where they are not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager

import pytest

from ckpt_transport.control import Mailbox
from ckpt_transport.service import calls
from ckpt_transport.service import questions as q
from ckpt_transport.service.calls import Called, Caller
from ckpt_transport.service.rendezvous import Rendezvous
from ckpt_transport.service.torch_store import Recheck, Wait, wait_only
from tests.patience import DEADLINE

ELSEWHERE = "ipc:///elsewhere"


class Meeting(Rendezvous):
    """Finds rank 0 at once, and notes what it was asked and told."""

    needs_calls, is_open = True, True

    def __init__(self) -> None:
        self.looked: list[str] = []
        self.called: list[tuple[str, str]] = []

    def leading(
        self, version: str, given_up: Mapping[str, str], token: str
    ) -> AbstractContextManager[Callable[[str], None]]:
        raise NotImplementedError("this rank does not lead")

    def find(self, version: str, given_up: Collection[str] = (), wait: Wait = wait_only) -> str:
        self.looked.append(version)
        return ELSEWHERE

    def tell_absence(self, version: str, reason: str) -> None:
        raise NotImplementedError("this rank comes")

    def was_called(self, version: str, token: str) -> None:
        self.called.append((version, token))

    def has_met(self, version: str) -> bool:
        return False

    def absent(self, version: str) -> dict[int, str]:
        return {}


class Empty(Meeting):
    """Finds nobody, and lets whoever looks wait."""

    def find(self, version: str, given_up: Collection[str] = (), wait: Wait = wait_only) -> str:
        self.looked.append(version)
        wait(Future(), DEADLINE, Recheck())
        raise TimeoutError


@pytest.fixture
def rank_0() -> Iterator[Mailbox]:
    with Mailbox(types=q.COORDINATOR) as mailbox:
        yield mailbox


@pytest.fixture
def here() -> Iterator[Mailbox]:
    with Mailbox(types=q.PARTICIPANT) as mailbox:
        yield mailbox


def calling(here: Mailbox, nonce: str) -> Caller:
    """Rank 0, in whose last update this rank took part, and said that nonce."""
    caller = Caller()
    caller.fellows = {here.address: nonce}
    return caller


def test_given_a_call_for_its_version_then_a_rank_comes_to_who_calls_and_looks_nowhere(
    rank_0: Mailbox, here: Mailbox
) -> None:
    caller, called, meeting = calling(here, "a nonce"), Called(), Meeting()
    called.took_part("a nonce")
    caller.lead = "v2", "a token"
    caller.call(rank_0)
    assert called.find("v2", meeting, here, ()) == rank_0.address
    assert (meeting.looked, meeting.called) == ([], [("v2", "a token")])


def test_given_a_call_that_comes_when_a_rank_looks_already_then_it_comes_though_it_finds_nothing(
    rank_0: Mailbox, here: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "WAIT_SECONDS", 0)
    caller, called, meeting = calling(here, "a nonce"), Called(), Empty()
    called.took_part("a nonce")
    caller.lead = "v2", "a token"
    caller.call(rank_0)
    assert called.find("v2", meeting, here, ()) == rank_0.address
    assert (meeting.looked, meeting.called) == (["v2"], [("v2", "a token")])


def test_given_a_call_that_was_called_off_before_it_comes_then_a_rank_looks(rank_0: Mailbox, here: Mailbox) -> None:
    caller, called, meeting = calling(here, "a nonce"), Called(), Meeting()
    called.took_part("a nonce")
    caller.lead = "v2", "a token"
    caller.call(rank_0)
    caller.fellows = {}  # nobody has come to that one
    caller.call_off()
    while sum(1 for _ in here.unread()) < 2:
        here.pump(1)
    assert called.find("v2", meeting, here, ()) == ELSEWHERE
    assert (meeting.looked, meeting.called) == (["v2"], [])


@pytest.mark.parametrize(("version", "nonce"), [("v3", "a nonce"), ("v2", "another nonce"), ("v2", "")])
def test_given_a_call_for_another_version_or_by_somebody_else_then_a_rank_looks(
    version: str, nonce: str, rank_0: Mailbox, here: Mailbox
) -> None:
    caller, called, meeting = calling(here, nonce), Called(), Meeting()
    called.took_part("a nonce")
    caller.lead = version, "a token"
    caller.call(rank_0)
    assert called.find("v2", meeting, here, ()) == ELSEWHERE
    assert (meeting.looked, meeting.called) == (["v2"], [])


def test_given_no_update_in_which_it_took_part_to_the_end_then_a_rank_does_not_wait_for_a_call(
    rank_0: Mailbox, here: Mailbox
) -> None:
    """Given an update that a rank came to and that failed, when it comes to the next one, then it looks at once."""
    called, meeting = Called(), Meeting()
    assert called.find("v1", meeting, here, ()) == ELSEWHERE
    called.took_part("a nonce")
    caller = calling(here, "a nonce")
    caller.lead = "v2", "a token"
    caller.call(rank_0)
    assert called.find("v2", meeting, here, ()) == rank_0.address
    assert called.find("v3", meeting, here, ()) == ELSEWHERE
    assert meeting.looked == ["v1", "v3"]
