"""Somebody dies while a staged version waits for its commit."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

import pytest

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import UpdateAbortedError
from tests.fleet import SinkProcess, SinkSpec, context, fleet, weights
from tests.leftovers import started_here
from tests.patience import DEADLINE, PATIENT, STOPPED, SWIFT
from tests.standing_still import stop_myself

SHAPE: dict[str, Any] = {"layers": 6, "width": 256}
CONFIG = Config.load(**SWIFT)

pytestmark = pytest.mark.usefixtures("dead_are_swept")


def stages(addresses: list[str], how: str, pipe: Connection) -> None:
    """A trainer that stages, and then ends, or stands still before it commits."""
    server = ParameterServer(CONFIG)
    server.register("v2", tensors=weights(2, **SHAPE))
    job = server.stage("v2", addresses)
    pipe.send("staged")
    pipe.recv()
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stops":
        stop_myself(STOPPED)
        try:
            job.commit()
        except UpdateAbortedError as error:
            pipe.send(str(error))


def check_serve(sinks: list[SinkProcess], seed: int) -> None:
    for sink in sinks:
        state = sink.wait_until(lambda state: not state.served)
        assert (state.version, state.tainted) == (f"v{seed}", "")
        assert state.holds(weights(seed, **SHAPE))


def updated(sinks: list[SinkProcess], seed: int) -> None:
    with ParameterServer(Config.load(**PATIENT)) as server:
        server.register(f"v{seed}", tensors=weights(seed, **SHAPE))
        server.update(f"v{seed}", [sink.address for sink in sinks])
    check_serve(sinks, seed)


@pytest.mark.parametrize("how", ["killed", "exits", "stops"])
def test_given_a_trainer_that_is_gone_before_it_commits_then_sinks_serve_the_old_version_and_are_free(how: str) -> None:
    """One that only stood still is told so when it commits."""
    with fleet(*[SinkSpec(SHAPE, settings=SWIFT)] * 2) as sinks:
        pipe, theirs = context.Pipe()
        trainer = context.Process(target=stages, args=([sink.address for sink in sinks], how, theirs), daemon=True)
        trainer.start()
        started_here(trainer)
        theirs.close()
        assert pipe.poll(DEADLINE)
        assert pipe.recv() == "staged"
        check_serve(sinks, 1)
        pipe.send("go on")
        updated(sinks, 3)
        if how == "stops":
            assert pipe.poll(DEADLINE)
            assert "changed nothing" in pipe.recv()
        trainer.join(DEADLINE)
        check_serve(sinks, 3)


def test_given_a_sink_that_dies_while_the_version_waits_then_the_commit_names_it_and_the_others_are_as_before() -> None:
    with fleet(*[SinkSpec(SHAPE, settings=SWIFT)] * 3) as sinks, ParameterServer(CONFIG) as server:
        server.register("v2", tensors=weights(2, **SHAPE))
        job = server.stage("v2", [sink.address for sink in sinks])
        sinks[2].process.kill()
        sinks[2].process.join(DEADLINE)
        with pytest.raises(UpdateAbortedError, match="sink 2"):
            job.commit()
        check_serve(sinks[:2], 1)
        server.update("v2", [sink.address for sink in sinks[:2]])
        check_serve(sinks[:2], 2)


def test_given_a_version_that_waits_for_longer_than_silence_may_last_then_all_who_live_are_heard_of() -> None:
    """Nobody reads the trainer's mailbox meanwhile."""
    with fleet(*[SinkSpec(SHAPE, settings=SWIFT)] * 2) as sinks, ParameterServer(CONFIG) as server:
        server.register("v2", tensors=weights(2, **SHAPE))
        job = server.stage("v2", [sink.address for sink in sinks])
        time.sleep(2 * SWIFT["heartbeat_timeout"])
        check_serve(sinks, 1)
        job.commit()
        check_serve(sinks, 2)
