"""A participant stands still for longer than heartbeats may be missing, as a stopped process does, and then goes on."""

from __future__ import annotations

from typing import Any

import pytest

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import TaintedError, UpdateAbortedError
from tests import stalls
from tests.fleet import SinkSpec, SourceProcess, State, fleet, weights
from tests.injection import Fault
from tests.patience import PATIENT, SWIFT, with_enough_seconds
from tests.standing_still import thaw

SHAPE = {"layers": 8, "width": 128}
SHM: dict[str, Any] = {"transport": "shm", **SWIFT}
SINK = SinkSpec(model=SHAPE, settings=SWIFT)
PATIENT_SINK = SinkSpec(model=SHAPE)

pytestmark = pytest.mark.usefixtures("dead_are_swept")


def serves(state: State, seed: int) -> bool:
    """Whether it serves that version, and every byte is of it."""
    said = (state.version, state.tainted, state.served)
    return said == (f"v{seed}", "", "") and state.holds(weights(seed, **SHAPE))


@pytest.mark.parametrize(("where", "ranks"), [("sent_all", None), ("run", (0, 1))], ids=["after", "before-by-p2p"])
def test_given_a_source_that_stands_still_when_sinks_then_give_up_the_update_has_failed(
    where: str, ranks: tuple[int, ...] | None
) -> None:
    """Given two sinks, when it stands still before or after the last byte, then what it says is what they do."""
    with fleet(SINK, SINK) as sinks:
        addresses = [sink.address for sink in sinks]
        fault = Fault(where, act="stop")
        said = SourceProcess(addresses, settings=SHM, shape=SHAPE, fault=fault, ranks=ranks).outcome()
        states = [sink.state() for sink in sinks]
        assert "this process has stood still for" in said
        if where == "run":
            assert said.startswith("UpdateAbortedError")
            assert all(serves(state, 1) for state in states)
        else:
            assert said.startswith("TaintedError")
            assert all(address in said for address in addresses)
            assert [(state.version, state.served) for state in states] == [("v1", "TaintedError")] * 2
        assert SourceProcess(addresses, settings=SHM, seed=3, shape=SHAPE).outcome() == ""
        assert all(serves(sink.state(), 3) for sink in sinks)


def test_given_a_source_that_stands_still_when_some_were_told_to_commit_then_it_says_who_serves_what() -> None:
    """Given two sinks, when only one of them hears in time that it may serve, then the update has failed."""
    with fleet(SINK, SINK) as (told, other):
        addresses = [told.address, other.address]
        source = SourceProcess(addresses, settings=SHM, shape=SHAPE, prepare=stalls.between_commits)
        told.wait_until(lambda state: serves(state, 2))
        state = other.wait_until(lambda state: state.tainted != "")
        thaw(source.process)
        said = source.outcome()
        assert (state.version, state.served) == ("v1", "TaintedError")
        assert said.startswith("TaintedError: the update failed when it was committed (rank 2 ")
        assert f"these serve 'v2': rank 1 (sink 0 at {told.address})" in said
        assert f"refuse to serve until an update succeeds: rank 2 (sink 1 at {other.address})" in said
        assert "gone" not in said


def test_given_a_source_that_stands_still_when_all_were_told_to_commit_then_nobody_is_lost() -> None:
    with fleet(SINK, SINK) as sinks:
        addresses = [sink.address for sink in sinks]
        settings = {**SHM, "join_timeout": 5.0}
        assert SourceProcess(addresses, settings=settings, shape=SHAPE, prepare=stalls.after_commits).outcome() == ""
        assert all(serves(sink.state(), 2) for sink in sinks)


def test_given_a_patient_sink_when_the_source_stood_still_then_it_says_so_and_does_not_commit() -> None:
    """Given a sink that waits longer than the source promised to be silent, then the source's own clock decides."""
    patient = SinkSpec(model=SHAPE, settings={"heartbeat_timeout": 60.0})
    with fleet(patient) as (sink,):
        fault = Fault("sent_all", act="stop")
        said = SourceProcess([sink.address], settings=SHM, shape=SHAPE, fault=fault).outcome()
        assert said.startswith("TaintedError: the update failed (this process has stood still for ")
        assert f"longer than heartbeat_timeout ({SWIFT['heartbeat_timeout']:g} s)" in said
        assert sink.state().served == "TaintedError"


def test_given_a_sink_that_stands_still_at_commit_when_it_goes_on_then_it_serves_the_new_version() -> None:
    """Given two sinks, when one stands still until the source has ended, then it is lost, and serves later."""
    with (
        fleet(SINK, SinkSpec(model=SHAPE, fault=Fault("resume", act="freeze"))) as (sink, slow),
        ParameterServer(Config.load(transport="shm", **SWIFT)) as server,
    ):
        server.register("v2", tensors=weights(2, **SHAPE))
        report = server.update("v2", [sink.address, slow.address])
        assert report is not None
        assert report.lost == (slow.label,)
        assert serves(sink.state(), 2)
        thaw(slow.process)
        slow.wait_until(lambda state: serves(state, 2))


def test_given_a_sink_that_lives_and_does_not_commit_then_the_update_has_failed() -> None:
    """Given two sinks, when one hangs in what it does at commit, then it is named, and not called lost."""

    def is_named(seconds: float) -> bool:
        with (
            fleet(PATIENT_SINK, SinkSpec(model=SHAPE, fault=Fault("resume", act="hang"))) as (sink, stuck),
            ParameterServer(Config.load(transport="shm", **{**PATIENT, "join_timeout": seconds})) as server,
        ):
            server.register("v2", tensors=weights(2, **SHAPE))
            with pytest.raises((TaintedError, UpdateAbortedError)) as caught:
                server.update("v2", [sink.address, stuck.address])
            stuck.process.kill()
            stuck.process.join()
            if "these live and do not say what they serve: rank 2" not in str(caught.value):
                return False
            assert isinstance(caught.value, TaintedError)
            assert [stuck.address in label for label in caught.value.sinks] == [True]
            assert [sink.address in label for label in caught.value.serving] == [True]
            assert serves(sink.state(), 2)
            return True

    with_enough_seconds(is_named)


def test_given_a_sink_that_hangs_half_way_and_says_nothing_then_nobody_says_that_it_is_as_it_was() -> None:
    """Given a sink that lives and does not answer an abort, then it is among those that must not serve."""

    def is_named(seconds: float) -> bool:
        patience = {"update_timeout": seconds, "join_timeout": seconds, "heartbeat_timeout": seconds}
        with (
            fleet(SinkSpec(model=SHAPE, fault=Fault("load", 1, act="hang"))) as (mute,),
            ParameterServer(Config.load(transport="shm", **{**PATIENT, **patience})) as server,
        ):
            server.register("v2", tensors=weights(2, **SHAPE))
            with pytest.raises((TaintedError, UpdateAbortedError)) as caught:
                server.update("v2", [mute.address])
            mute.process.kill()
            mute.process.join()
            if "these live and do not say what they serve: rank 1" not in str(caught.value):
                return False
            assert isinstance(caught.value, TaintedError)
            assert [mute.address in label for label in caught.value.sinks] == [True]
            return True

    with_enough_seconds(is_named)


def test_given_a_sink_that_fails_at_commit_then_the_update_has_failed_and_its_reason_is_said() -> None:
    with (
        fleet(SINK, SinkSpec(model=SHAPE, fault=Fault("resume", act="raise"))) as (sink, failing),
        ParameterServer(Config.load(transport="shm", **SWIFT)) as server,
    ):
        server.register("v2", tensors=weights(2, **SHAPE))
        with pytest.raises(TaintedError, match="injected into resume") as caught:
            server.update("v2", [sink.address, failing.address])
        assert [failing.address in label for label in caught.value.sinks] == [True]
        assert serves(sink.state(), 2)
        assert failing.state().served == "TaintedError"
