"""A participant is killed with SIGKILL at every stage: all or nothing, named, in time, and healed after."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import TaintedError, UpdateAbortedError
from tests.fleet import SinkSpec, SourceProcess, fleet, weights
from tests.injection import Fault
from tests.patience import SWIFT

TRANSPORTS = ("shm", "gloo")
SHAPE = {"layers": 8, "width": 512}
SMALL_BUCKETS: dict[str, Any] = {"bucket_bytes": "1100KiB", "ring_depth": 2}

BEFORE_ANY_BYTE = [Fault("propose"), Fault("open"), Fault("connect"), Fault("hold"), Fault("advance")]
AFTER_SOME_BYTES = [Fault("load"), Fault("load", 4), Fault("finish")]

pytestmark = pytest.mark.usefixtures("dead_are_swept")


def update_again(server: ParameterServer, seed: int, address: str) -> None:
    server.register(f"v{seed}", tensors=weights(seed, **SHAPE))
    server.update(f"v{seed}", [address])


@pytest.mark.parametrize("fault", BEFORE_ANY_BYTE, ids=lambda fault: str(fault.where))
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_given_a_sink_that_dies_before_the_first_byte_then_nothing_has_changed(transport: str, fault: Fault) -> None:
    """Given two sinks, when one is killed early, then the other serves its old version and takes the next one."""
    with (
        fleet(SinkSpec(model=SHAPE), SinkSpec(model=SHAPE, fault=fault)) as (survivor, victim),
        ParameterServer(Config.load(transport=transport, **SMALL_BUCKETS, **SWIFT)) as server,
    ):
        server.register("v2", tensors=weights(2, **SHAPE))
        with pytest.raises(UpdateAbortedError, match=re.escape(victim.address)):
            server.update("v2", [survivor.address, victim.address])
        assert victim.dies()
        state = survivor.wait_until(lambda state: not state.served)
        assert (state.version, state.tainted) == ("v1", "")
        assert state.holds(weights(1, **SHAPE))
        update_again(server, 3, survivor.address)
        assert survivor.state().holds(weights(3, **SHAPE))


@pytest.mark.parametrize("fault", AFTER_SOME_BYTES, ids=lambda fault: f"{fault.where}-{fault.count}")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_given_a_sink_that_dies_half_way_then_the_others_are_tainted_until_the_next_update(
    transport: str, fault: Fault
) -> None:
    """Given two sinks, when one is killed while it applies, then the other must not serve a mix, and is healed."""
    with (
        fleet(SinkSpec(model=SHAPE), SinkSpec(model=SHAPE, fault=fault)) as (survivor, victim),
        ParameterServer(Config.load(transport=transport, **SMALL_BUCKETS, **SWIFT)) as server,
    ):
        server.register("v2", tensors=weights(2, **SHAPE))
        with pytest.raises((TaintedError, UpdateAbortedError), match=re.escape(victim.address)) as caught:
            server.update("v2", [survivor.address, victim.address])
        assert victim.dies()
        state = survivor.state()
        if isinstance(caught.value, TaintedError):
            assert [survivor.address in name for name in caught.value.sinks] == [True]
            assert str(caught.value).startswith("the update failed (rank 2 (")
            assert state.served == "TaintedError"
            assert "v2" in state.tainted
        else:
            assert state.served == ""
            assert state.holds(weights(1, **SHAPE))
        assert state.version == "v1"
        update_again(server, 3, survivor.address)
        healed = survivor.state()
        assert (healed.version, healed.tainted, healed.served) == ("v3", "", "")
        assert healed.holds(weights(3, **SHAPE))


def test_given_a_sink_that_dies_after_all_agreed_then_it_is_reported_and_the_update_stands() -> None:
    """Given that every sink has everything, when one dies at commit, then the others serve the new version."""
    with (
        fleet(SinkSpec(model=SHAPE), SinkSpec(model=SHAPE, fault=Fault("resume"))) as (survivor, victim),
        ParameterServer(Config.load(transport="shm", **SWIFT)) as server,
    ):
        server.register("v2", tensors=weights(2, **SHAPE))
        report = server.update("v2", [survivor.address, victim.address])
        assert report is not None
        assert victim.dies()
        assert report.lost == (victim.label,)
        state = survivor.state()
        assert (state.version, state.served) == ("v2", "")
        assert state.holds(weights(2, **SHAPE))


@pytest.mark.parametrize("where", ["propose", "open", "connect"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_given_a_source_that_dies_before_the_first_byte_then_nothing_has_changed(transport: str, where: str) -> None:
    """Given a serving sink, when the source is killed early, then the sink goes on and another source updates it."""
    with fleet(SinkSpec(model=SHAPE, settings=SWIFT)) as (sink,):
        settings = {"transport": transport}
        assert SourceProcess([sink.address], settings=settings, shape=SHAPE, fault=Fault(where)).outcome() == "killed"
        state = sink.wait_until(lambda state: not state.served)
        assert (state.version, state.tainted) == ("v1", "")
        assert state.holds(weights(1, **SHAPE))
        assert SourceProcess([sink.address], settings=settings, seed=3, shape=SHAPE).outcome() == ""
        assert sink.state().holds(weights(3, **SHAPE))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_given_a_source_that_dies_while_it_sends_then_no_mix_is_served(transport: str) -> None:
    """Given a sink in the middle of an update, when the source is killed, then it serves v1 whole or not at all."""
    with fleet(SinkSpec(model=SHAPE, settings=SWIFT)) as (sink,):
        settings = {"transport": transport, **SMALL_BUCKETS}
        source = SourceProcess([sink.address], settings=settings, shape=SHAPE, fault=Fault("sent", 3))
        assert source.outcome() == "killed"
        state = sink.state()
        assert state.version == "v1"
        if state.tainted:
            assert state.served == "TaintedError"
        else:
            assert state.served == ""
            assert state.holds(weights(1, **SHAPE))
        assert state.tainted or transport == "gloo", "with shm, what was sent was applied"
        assert SourceProcess([sink.address], settings=settings, seed=3, shape=SHAPE).outcome() == ""
        healed = sink.state()
        assert (healed.version, healed.tainted, healed.served) == ("v3", "", "")
        assert healed.holds(weights(3, **SHAPE))
