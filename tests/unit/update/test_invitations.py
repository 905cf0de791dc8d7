"""What those who are invited say, in whichever order it arrives."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pytest

from ckpt_transport import Config
from ckpt_transport.control import Mailbox, Message
from ckpt_transport.errors import JoinError
from ckpt_transport.planning import Manifest, Role
from ckpt_transport.service import questions as q
from ckpt_transport.update import invitations
from ckpt_transport.update import messages as m
from ckpt_transport.update.invitations import Invitations, Invitees
from ckpt_transport.update.membership import Membership
from ckpt_transport.update.turn import Turn
from tests.patience import DEADLINE, PATIENT

Kind = TypeVar("Kind", bound=Message)


def hear(mailbox: Mailbox, kind: type[Kind]) -> Kind:
    """The next message of that kind; what comes before is dropped."""
    end = time.monotonic() + DEADLINE
    while (received := mailbox.receive(end - time.monotonic())) is not None:
        if isinstance(received[1], kind):
            return received[1]
    raise AssertionError(f"no {kind.__name__}")


def join(role: Role, name: str, invited: str = "") -> m.Join:
    return m.Join(
        update="u",
        role=role,
        uid=name,
        nonce=name,
        label=name,
        host="",
        budget=1,
        transports=(),
        unavailable={},
        routes=(),
        rank=0,
        manifest=Manifest("v2", (), ()),
        invited=invited,
    )


def takes_part(sink: Mailbox, leader: str, name: str) -> None:
    """Have this sink join, when it has been invited."""
    sink.send(leader, m.Challenge("u", sink.address, name))
    while hear(sink, m.Invite).nonce != name:
        pass
    sink.send(leader, join(Role.SINK, name, sink.address))


def comes_again(sink: Mailbox, leader: str, name: str, gathered: Future[None]) -> None:
    """Have this sink join as often as it is invited, until all have come: it may be heard before who came first."""
    sink.send(leader, m.Challenge("u", sink.address, name))
    while not gathered.done():
        match sink.receive(0.1):
            case (_, m.Invite(nonce=nonce)) if nonce == name:
                sink.send(leader, join(Role.SINK, name, sink.address))
            case (_, m.Abort()):
                sink.send(leader, m.Aborted("u", False, "it is given back"))


def test_given_a_sink_that_is_given_back_when_its_goodbye_comes_after_that_it_is_busy_then_it_is_waited_for() -> None:
    """Given that it has joined another update meanwhile: it says so on another connection, which may be quicker."""
    kinds = q.PARTICIPANT
    with (
        Mailbox(types=q.COORDINATOR, interval=0.1) as leader,
        Mailbox(types=kinds) as one,
        Mailbox(types=kinds) as other,
        ThreadPoolExecutor(1) as threads,
    ):
        first, second = sorted((one, other), key=lambda sink: sink.address)
        config = Config.load(**PATIENT)
        members = Membership("u", leader, config, time.monotonic() + DEADLINE, Turn("an update"))
        invitees = Invitees(1, (first.address, second.address))
        gathered = threads.submit(Invitations(members, leader, config, invitees).gather, join(Role.SOURCE, "zeroth"))
        takes_part(second, leader.address, "second")
        first.send(leader.address, m.Busy("u", first.address, "takes part in another update"))
        hear(second, m.Abort)
        second.send(leader.address, m.Busy("u", second.address, "takes part in another update"))
        second.send(leader.address, m.Aborted("u", False, "another goes first"))
        takes_part(first, leader.address, "first")
        comes_again(second, leader.address, "second again", gathered)
        gathered.result(DEADLINE)
        assert [member.uid for member in members.joins] == ["zeroth", "first", "second again"]


def test_given_a_sink_that_is_busy_for_a_moment_then_it_is_invited_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given that whoever is busy for long is invited again less often than this test may take."""
    monkeypatch.setattr(invitations, "INVITE_SECONDS", 10 * DEADLINE)
    config = Config.load(**PATIENT)
    with (
        Mailbox(types=q.COORDINATOR, interval=0.1) as leader,
        Mailbox(types=q.PARTICIPANT) as sink,
        ThreadPoolExecutor(1) as threads,
    ):
        members = Membership("u", leader, config, time.monotonic() + DEADLINE, Turn("an update"))
        inviting = Invitations(members, leader, config, Invitees(1, (sink.address,)))
        gathered = threads.submit(inviting.gather, join(Role.SOURCE, "zeroth"))
        for _ in range(3):
            hear(sink, m.Invite)
            sink.send(leader.address, m.Busy("u", sink.address, "takes part in another update"))
        takes_part(sink, leader.address, "sink")
        gathered.result(DEADLINE)


def test_given_a_sink_that_has_been_silent_before_then_the_time_to_join_is_not_waited_for_again() -> None:
    config = Config.load(**{**PATIENT, "heartbeat_timeout": 1.0, "join_timeout": 100 * DEADLINE})
    with Mailbox(types=q.COORDINATOR, interval=0.1) as leader, Mailbox(types=q.PARTICIPANT) as mute:
        members = Membership("u", leader, config, time.monotonic() + DEADLINE, Turn("an update"))
        inviting = Invitations(members, leader, config, Invitees(1, (mute.address,), silent=(mute.address,)))
        with ThreadPoolExecutor(1) as threads, pytest.raises(JoinError, match=f"did not join.*{mute.address}"):
            threads.submit(inviting.gather, join(Role.SOURCE, "zeroth")).result(DEADLINE)
