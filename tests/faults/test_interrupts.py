"""An interrupt comes at any step of an update: its cause says what sinks serve, and the next update succeeds."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress
from functools import partial

import pytest

from ckpt_transport import Config, ParameterServer
from ckpt_transport.control import Mailbox
from ckpt_transport.errors import TaintedError, UpdateAbortedError
from ckpt_transport.planning import Role
from ckpt_transport.service import questions as q
from ckpt_transport.update import messages as m
from ckpt_transport.update.membership import Membership
from ckpt_transport.update.shielded import shielded
from ckpt_transport.update.turn import Turn
from tests.fleet import SinkSpec, fleet, weights
from tests.patience import DEADLINE, PATIENT
from tests.support.interrupting import Interrupter

SHAPE = {"layers": 2, "width": 16}
POINTS = 40
"""Steps that are interrupted, of the thousands that an update makes: evenly, and again so many of its last ones."""


def outcome_of(interrupt: KeyboardInterrupt) -> str:
    """What sinks serve by the interrupt's word."""
    match interrupt.__cause__:
        case UpdateAbortedError():
            return "old"
        case TaintedError():
            return "tainted"
        case cause:
            assert cause is None
            return "new"


@pytest.mark.parametrize("commit", ["staged", "in_place"])
def test_given_an_interrupt_at_any_step_of_a_publication_then_its_cause_says_what_sinks_serve(commit: str) -> None:
    config = Config.load(**PATIENT, commit=commit)
    with fleet(SinkSpec(SHAPE), SinkSpec(SHAPE)) as sinks, ParameterServer(config) as server:
        addresses = [sink.address for sink in sinks]
        interrupter = Interrupter("ckpt_transport")
        for seed in (2, 3):
            interrupter.run(partial(server.publish, f"v{seed}", weights(seed, **SHAPE), addresses), 0)
        steps = interrupter.steps
        served = 3
        for at in (*range(steps // POINTS, steps, steps // POINTS), *range(steps - POINTS, steps)):
            before, served = served, served + 1
            said = "new"
            try:
                interrupter.run(partial(server.publish, f"at {at}, {served}", weights(served, **SHAPE), addresses), at)
            except KeyboardInterrupt as interrupt:
                said = outcome_of(interrupt)
            states = [sink.state() for sink in sinks]
            if said == "tainted":
                assert commit == "in_place", interrupter.place
                assert any(state.tainted for state in states), interrupter.place
            else:
                is_served = served if said == "new" else before
                assert all(state.holds(weights(is_served, **SHAPE)) for state in states), (said, interrupter.place)
            served += 1
            server.publish(f"after {at}, {served}", weights(served, **SHAPE), addresses)
            assert all(sink.state().holds(weights(served, **SHAPE)) for sink in sinks), interrupter.place


def sink_join(number: int) -> m.Join:
    label = f"sink {number}"
    return m.Join(role=Role.SINK, uid=label, label=label, host="", budget=1, transports=(), unavailable={})


def test_given_an_interrupt_at_any_step_of_who_takes_part_then_each_member_has_a_name_and_an_address() -> None:
    with Mailbox(types=q.COORDINATOR) as mailbox:
        at, place = 0, "the first"
        while place:
            at += 1
            members = Membership("u", mailbox, Config(), time.monotonic() + DEADLINE, Turn("an update"))

            def regroup(members: Membership = members) -> None:
                for number in range(3):
                    members.admit(f"ipc:///nowhere/{number}", sink_join(number))
                members.keep([0, 2])

            interrupter = Interrupter("update/membership")
            with suppress(KeyboardInterrupt):
                interrupter.run(regroup, at)
            place = interrupter.place
            for rank, address in enumerate(members.addresses):
                assert members.label(rank).endswith(f"at {address})"), place
                assert address in members.who(address), place
        assert members.addresses == ["ipc:///nowhere/0", "ipc:///nowhere/2"]
        assert members.label(1) == "rank 1 (sink 2 at ipc:///nowhere/2)"
        assert at > 10


def test_given_work_that_must_end_when_interrupts_come_then_it_ends_and_the_second_hurries_it() -> None:
    main = threading.main_thread().ident
    assert main is not None
    hurried = threading.Event()

    def work() -> str:
        for _ in range(int(DEADLINE * 2)):
            signal.pthread_kill(main, signal.SIGINT)
            if hurried.wait(0.5):
                return "has ended"
        return "was never hurried"

    result, interrupt = shielded(work, hurried.set)
    assert result == "has ended"
    assert isinstance(interrupt, KeyboardInterrupt)


def test_given_work_that_fails_then_its_error_is_raised() -> None:
    def work() -> None:
        raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        shielded(work, lambda: None)
