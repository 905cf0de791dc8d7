"""The coordinator of a staged update dies between two messages of the commit: the sinks settle it among themselves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest

from ckpt_transport import Config, ParameterServer
from ckpt_transport.control import Mailbox
from ckpt_transport.control.connections import LINGER_MS
from ckpt_transport.service.query import ask_version
from tests.fleet import SinkProcess, SinkSpec, SourceProcess, fleet, weights
from tests.injection import Fault
from tests.patience import DEADLINE, PATIENT, SWIFT
from tests.standing_still import freeze, thaw, wait_until_frozen
from tests.support.commands import run

SHAPE: dict[str, Any] = {"layers": 6, "width": 256}
STAGED: dict[str, Any] = {"commit": "staged", "transport": "shm"}

pytestmark = pytest.mark.usefixtures("dead_are_swept")


def says(frames: Sequence[bytes], order: str) -> bool:
    """Whether a message is of that kind."""
    return bytes([0xA0 + len(order)]) + order.encode() in frames[-1][:64]


def before(order: str, count: int, act: Callable[[Mailbox], None]) -> None:
    """Have something done in this process when it is to say ``order`` for the ``count``-th time."""
    send, said = Mailbox.send_encoded, 0

    def counted(mailbox: Mailbox, address: str, frames: Sequence[bytes]) -> None:
        nonlocal said
        if says(frames, order):
            said += 1
            if said == count:
                act(mailbox)
        send(mailbox, address, frames)

    Mailbox.send_encoded = counted  # type: ignore[method-assign, assignment]


def dies_before(order: str, count: int) -> None:
    """Have this process be killed when it is to say ``order`` for the ``count``-th time."""

    def die(mailbox: Mailbox) -> None:
        mailbox.close()  # when what was sent has left
        Fault("send").strike()

    before(order, count, die)


def sleeps_before(order: str, count: int) -> None:
    """Have this process stand still, until it is thawed, when it is to say ``order`` for the ``count``-th time."""
    before(order, count, lambda mailbox: freeze())


def led_by_one_that_dies(sinks: list[SinkProcess], order: str, count: int) -> None:
    source = SourceProcess(
        [sink.address for sink in sinks], settings=STAGED, shape=SHAPE, prepare=partial(dies_before, order, count)
    )
    assert source.outcome() == "killed"


def updated_again(sinks: list[SinkProcess], seed: int) -> None:
    with ParameterServer(Config.load(**PATIENT, **STAGED)) as server:
        server.register(f"v{seed}", tensors=weights(seed, **SHAPE))
        server.update(f"v{seed}", [sink.address for sink in sinks])
    assert all(sink.state().holds(weights(seed, **SHAPE)) for sink in sinks)


@pytest.mark.parametrize(
    ("order", "count", "seed"),
    [
        ("Stand", 2, 1),
        ("Apply", 1, 1),
        ("Apply", 2, 1),
        ("Decide", 1, 1),
        ("Decide", 2, 2),
        ("Decide", 3, 2),
        ("Commit", 1, 2),
        ("Commit", 2, 2),
    ],
)
def test_given_a_coordinator_that_dies_before_a_word_then_all_sinks_serve_the_same_version(
    order: str, count: int, seed: int
) -> None:
    """Given three sinks, when nobody has heard Decide, then all go back; when one has, all go forward."""
    with fleet(*[SinkSpec(SHAPE, settings=SWIFT)] * 3) as sinks:
        led_by_one_that_dies(sinks, order, count)
        for sink in sinks:
            state = sink.wait_until(lambda state: not state.served and state.version == f"v{seed}")
            assert state.tainted == ""
            assert state.holds(weights(seed, **SHAPE))
        updated_again(sinks, 3)


@pytest.mark.parametrize("pause", [0.0, 3 * LINGER_MS / 1000], ids=["briefly", "long"])
@pytest.mark.parametrize(
    ("order", "count", "seed"), [("Decide", 1, 1), ("Decide", 2, 2), ("Commit", 1, 2), ("Commit", 3, 2)]
)
def test_given_a_coordinator_that_sleeps_when_sinks_have_settled_then_it_says_what_they_serve(
    order: str, count: int, seed: int, pause: float
) -> None:
    """Given three sinks that take it for dead, when it wakes, now or when no message waits any more, none is lost."""
    with fleet(*[SinkSpec(SHAPE, settings=SWIFT)] * 3) as sinks:
        addresses = [sink.address for sink in sinks]
        source = SourceProcess(addresses, settings=STAGED, shape=SHAPE, prepare=partial(sleeps_before, order, count))
        config = Config.load(**SWIFT)
        wait_until_frozen(source.process)
        for sink in sinks:
            while ask_version(sink.address, config, timeout=DEADLINE).update:
                pass
        time.sleep(pause)
        thaw(source.process)
        said = source.outcome()
        assert said == "" if seed == 2 else said.startswith("UpdateAbortedError"), said
        assert all(sink.state().holds(weights(seed, **SHAPE)) for sink in sinks)
        updated_again(sinks, 3)


def test_given_one_sink_alone_when_its_coordinator_dies_after_it_applied_then_it_goes_back() -> None:
    with fleet(SinkSpec(SHAPE, settings=SWIFT)) as sinks:
        led_by_one_that_dies(sinks, "Decide", 1)
        state = sinks[0].wait_until(lambda state: not state.served)
        assert (state.version, state.tainted) == ("v1", "")
        assert state.holds(weights(1, **SHAPE))


def test_given_a_sink_that_reaches_nobody_then_it_is_in_doubt_until_the_next_update() -> None:
    """Given two sinks that have applied, when coordinator and one sink die, then the other holds and says why."""
    swift = {**SWIFT, "join_timeout": 5}
    specs = SinkSpec(SHAPE, settings=swift), SinkSpec(SHAPE, settings=swift)
    with fleet(*specs) as sinks:
        source = SourceProcess(
            [sink.address for sink in sinks],
            settings=STAGED,
            shape=SHAPE,
            prepare=partial(dies_with, "Commit", sinks[1].process.pid or 0),
        )
        assert source.outcome() == "killed"
        assert sinks[1].dies()
        address = sinks[0].address
        config = Config.load(**SWIFT)
        while not (served := ask_version(address, config, timeout=DEADLINE)).in_doubt:
            pass
        assert "no other sink" in served.in_doubt
        shown = run("version", "--timeout", DEADLINE, address)
        assert shown.returncode == 3
        assert "in doubt" in shown.stdout
        updated_again(sinks[:1], 3)
        assert not ask_version(address, config, timeout=DEADLINE).in_doubt


def dies_with(order: str, pid: int) -> None:
    """Have this process kill another, and itself, when it is to say ``order``."""

    def kill(mailbox: Mailbox) -> None:
        os.kill(pid, signal.SIGKILL)
        Fault("send").strike()

    before(order, 1, kill)
