"""An interrupt comes at any step of an update: its cause says what sinks serve, and the next update succeeds."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import pytest

from ckpt_transport import Config, ParameterServer, Report, StagedJob
from ckpt_transport.control import Mailbox
from ckpt_transport.planning import Role
from ckpt_transport.service import questions as q
from ckpt_transport.update import messages as m
from ckpt_transport.update.membership import Membership
from ckpt_transport.update.shielded import shielded
from ckpt_transport.update.turn import Turn
from tests.fleet import SinkSpec, fleet, weights
from tests.patience import DEADLINE, PATIENT
from tests.support.interrupting import Interrupter
from tests.support.outcomes import outcome_of

SHAPE = {"layers": 2, "width": 16}
BEFORE = 5
"""An interrupt at one of so many first steps comes before a call has begun to say what becomes of it."""
POINTS = 40
"""Steps that are interrupted, of the thousands that an update makes: evenly, and again so many of its last ones."""


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
            said, held = "new", None
            try:
                interrupter.run(partial(server.publish, f"at {at}, {served}", weights(served, **SHAPE), addresses), at)
            except KeyboardInterrupt as interrupt:
                said, held = outcome_of(interrupt), interrupt
            states = [sink.state() for sink in sinks]
            if said == "tainted":
                assert commit == "in_place", interrupter.place
                assert any(state.tainted for state in states), interrupter.place
            else:
                is_served = served if said == "new" else before
                assert all(state.holds(weights(is_served, **SHAPE)) for state in states), (said, interrupter.place)
            server.register(f"at {at}, {served}", tensors=weights(served, **SHAPE))  # its name is free again
            server.unregister(f"at {at}, {served}")
            served += 1
            server.publish(f"after {at}, {served}", weights(served, **SHAPE), addresses)
            assert all(sink.state().holds(weights(served, **SHAPE)) for sink in sinks), interrupter.place
            del held  # up to here as in a handler of the interrupt, which keeps all that was interrupted


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
            assert members.fellows == (), place
            for rank, address in enumerate(members.addresses):
                assert members.label(rank).endswith(f"at {address})"), place
                assert address in members.who(address), place
        assert members.addresses == ["ipc:///nowhere/0", "ipc:///nowhere/2"]
        assert members.label(1) == "rank 1 (sink 2 at ipc:///nowhere/2)"
        assert at > 10


@pytest.mark.parametrize("lends", [False, True])
def test_given_an_interrupt_at_any_step_of_taking_a_version_in_then_its_name_is_free(lends: bool) -> None:
    with ParameterServer(Config.load(**PATIENT)) as server:
        tensors = weights(1, **SHAPE)
        take_in = partial(server.lend, "v", tensors) if lends else partial(server.register, "v", tensors=tensors)
        interrupter = Interrupter("ckpt_transport")
        at = 0
        while True:
            at += 1
            try:
                interrupter.run(take_in, at)
            except KeyboardInterrupt:
                take_in()
            server.unregister("v")
            if not interrupter.place:
                break
        assert at > BEFORE


@dataclass
class Call:
    """A call of a server that is interrupted, and what comes before it.

    Attributes:
        prepare: called with the version that is to come.
        make: the call.
        changes: sinks serve that version when it has ended well.
        end: called whatever has become of it.
    """

    prepare: Callable[[str, int], None]
    make: Callable[[], object]
    end: Callable[[], object]
    changes: bool = True


def staging_calls(server: ParameterServer, addresses: list[str]) -> dict[str, Call]:
    """Those that a staged version goes through."""
    jobs: list[StagedJob[Report]] = []
    version = ""

    def register(name: str, seed: int) -> None:
        nonlocal version
        version = name
        server.register(version, tensors=weights(seed, **SHAPE))

    def stage(name: str = "", seed: int = 0) -> None:
        if name:
            register(name, seed)
        jobs.append(server.stage(version, addresses))

    def end() -> None:
        for job in jobs:
            job.drop()
        jobs.clear()
        server.unregister(version)

    return {
        "stage": Call(register, stage, end, changes=False),
        "commit": Call(stage, lambda: jobs[-1].commit(), end),
        "drop": Call(stage, lambda: jobs[-1].drop(), end, changes=False),
    }


@pytest.mark.parametrize("kind", ["stage", "commit", "drop"])
def test_given_an_interrupt_at_any_step_of_a_staged_version_then_its_cause_says_what_sinks_serve(kind: str) -> None:
    with fleet(SinkSpec(SHAPE)) as sinks, ParameterServer(Config.load(**PATIENT, commit="staged")) as server:
        addresses = [sinks[0].address]
        call = staging_calls(server, addresses)[kind]
        server.publish("v2", weights(2, **SHAPE), addresses)
        interrupter = Interrupter("ckpt_transport")
        for name in ("v3", "v4"):
            call.prepare(name, 2)
            interrupter.run(call.make, 0)
            call.end()
        served = 2
        for number, at in enumerate(_sampled(interrupter.steps)):
            before, served = served, served + 1
            call.prepare(f"{number}", served)
            said = "new"
            try:
                interrupter.run(call.make, at)
            except KeyboardInterrupt as interrupt:
                said = outcome_of(interrupt)
            is_served = served if said == "new" and call.changes else before
            assert sinks[0].state().holds(weights(is_served, **SHAPE)), (said, interrupter.place)
            call.end()
            served += 1
            server.publish(f"after {number}", weights(served, **SHAPE), addresses)
    gc.collect()  # an endpoint whose close was interrupted is closed when it is collected


def _sampled(steps: int) -> list[int]:
    """Some of so many steps: evenly, and the last ones."""
    return [*range(BEFORE + 1, steps, max(steps // 15, 1)), *range(steps - 15, steps)]


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
