"""Somebody dies, stands still or is interrupted while a trainer warms up: all serve what they did, and are free."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import SupersededError, UpdateAbortedError
from ckpt_transport.update.turn import Turn
from ckpt_transport.update.warm_up_coordinator import WarmUpCoordinator
from tests.fleet import SinkProcess, SinkSpec, context, fleet, weights
from tests.injection import Fault
from tests.leftovers import started_here
from tests.patience import DEADLINE, PATIENT, SWIFT, with_enough_seconds

SHAPE: dict[str, Any] = {"layers": 6, "width": 256}

pytestmark = pytest.mark.usefixtures("dead_are_swept")


def server_for(**settings: Any) -> ParameterServer:
    return ParameterServer(Config.load(**{**SWIFT, "commit": "auto", **settings}))


def check_serve(sinks: list[SinkProcess], seed: int) -> None:
    for sink in sinks:
        state = sink.wait_until(lambda state: not state.served)
        assert (state.version, state.tainted) == (f"v{seed}", "")
        assert state.holds(weights(seed, **SHAPE))


def update_by(server: ParameterServer, sinks: list[SinkProcess], seed: int) -> None:
    server.register(f"v{seed}", tensors=weights(seed, **SHAPE))
    server.update(f"v{seed}", [sink.address for sink in sinks])
    check_serve(sinks, seed)


@pytest.mark.parametrize("where", ["propose", "connect", "load", "finish", "resume"])
@pytest.mark.parametrize("act", ["kill", "raise"])
def test_given_a_sink_that_fails_in_a_warm_up_then_that_is_named_and_the_others_are_as_before_and_take_an_update(
    where: str, act: str
) -> None:
    fault = Fault(where, act=act)
    specs = SinkSpec(SHAPE, settings=SWIFT), SinkSpec(SHAPE, settings=SWIFT, fault=fault)
    with fleet(*specs) as sinks, server_for() as server:
        server.register("v2", tensors=weights(2, **SHAPE))
        with pytest.raises(UpdateAbortedError, match=r"sink 1|rank 2"):
            server.warm_up("v2", [sink.address for sink in sinks])
        left = sinks if act == "raise" else sinks[:1]
        check_serve(left, 1)
        update_by(server, left, 3)


def warms_up(addresses: list[str], when: str) -> None:
    """A trainer that is killed in its warm-up, or afterwards."""
    server = server_for()
    server.register("v2", tensors=weights(2, **SHAPE))

    def die(done: int, total: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    server.warm_up("v2", addresses, progress=die if when == "meanwhile" else None)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("when", ["meanwhile", "afterwards"])
def test_given_a_trainer_that_dies_in_its_warm_up_or_afterwards_then_sinks_are_as_before_and_free(when: str) -> None:
    with fleet(*[SinkSpec(SHAPE, settings=SWIFT)] * 2) as sinks, server_for() as other:
        trainer = context.Process(target=warms_up, args=([sink.address for sink in sinks], when), daemon=True)
        trainer.start()
        started_here(trainer)
        trainer.join(DEADLINE)
        assert trainer.exitcode == -signal.SIGKILL
        check_serve(sinks, 1)
        update_by(other, sinks, 3)


def interrupts(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["_plan", "_run", "_report"])
def test_given_an_interrupt_in_a_warm_up_then_its_cause_says_that_nothing_has_changed(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fleet(*[SinkSpec(SHAPE, settings=SWIFT)] * 2) as sinks, server_for() as server:
        server.register("v2", tensors=weights(2, **SHAPE))
        with monkeypatch.context() as patched:
            patched.setattr(WarmUpCoordinator, where, interrupts)
            with pytest.raises(KeyboardInterrupt) as interrupted:
                server.warm_up("v2", [sink.address for sink in sinks])
        assert isinstance(interrupted.value.__cause__, UpdateAbortedError)
        check_serve(sinks, 1)
        update_by(server, sinks, 3)


def meanwhile(act: Callable[[], object]) -> Callable[[int, int], None]:
    """Progress that acts once."""
    once = iter([act])

    def progress(done: int, total: int) -> None:
        for each in once:
            each()

    return progress


def test_given_a_warm_up_when_a_newer_update_takes_its_turn_then_it_ends_and_the_update_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supersede, asked = Turn.supersede, threading.Event()

    def told(turn: Turn, newer: str) -> object:
        end = supersede(turn, newer)
        asked.set()
        return end

    monkeypatch.setattr(Turn, "supersede", told)
    with fleet(SinkSpec(SHAPE)) as sinks, server_for() as server:
        addresses = [sinks[0].address]
        for seed in (2, 3):
            server.register(f"v{seed}", tensors=weights(seed, **SHAPE))
        newer = threading.Thread(target=server.update, args=("v3", addresses), kwargs={"supersede": True})

        def begin() -> None:
            newer.start()
            assert asked.wait(DEADLINE)

        with pytest.raises(SupersededError):
            server.warm_up("v2", addresses, meanwhile(begin))
        newer.join(DEADLINE)
        check_serve(sinks, 3)


def test_given_a_warm_up_that_takes_too_long_then_it_ends_and_all_is_as_before() -> None:
    hang = Fault("load", act="stop")

    def ends(seconds: float) -> bool:
        with fleet(SinkSpec(SHAPE, settings=SWIFT, fault=hang)) as sinks, server_for(update_timeout=seconds) as server:
            server.register("v2", tensors=weights(2, **SHAPE))
            with pytest.raises(UpdateAbortedError) as late:
                server.warm_up("v2", [sinks[0].address])
            check_serve(sinks, 1)
        return "update_timeout" in str(late.value) or "is gone" in str(late.value)

    with_enough_seconds(ends)


def test_given_another_trainer_that_warms_up_then_an_update_waits_for_it_and_both_succeed() -> None:
    with fleet(SinkSpec(SHAPE)) as sinks, server_for(**PATIENT) as one, server_for(**PATIENT) as other:
        one.register("v2", tensors=weights(2, **SHAPE))
        update = threading.Thread(target=update_by, args=(other, sinks, 3))
        one.warm_up("v2", [sinks[0].address], meanwhile(update.start))
        update.join(DEADLINE)
        assert not update.is_alive()
        check_serve(sinks, 3)
