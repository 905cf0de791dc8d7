"""A fleet goes back to the version that it served before, and forward again, without a byte that moves."""

from __future__ import annotations

import pytest

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import UpdateAbortedError
from tests.fleet import SinkProcess, SinkSpec, by_name, fleet, weights
from tests.injection import Fault
from tests.multiprocess.test_staged import SHAPE, server_for, updated
from tests.patience import PATIENT


def all_serve(sinks: list[SinkProcess], seed: int) -> bool:
    states = [sink.state() for sink in sinks]
    assert {(state.version, state.tainted, state.served) for state in states} == {(f"v{seed}", "", "")}
    return all(state.holds(weights(seed, **SHAPE)) for state in states)


def test_given_two_versions_when_rolled_back_twice_then_the_first_and_then_the_second_is_served() -> None:
    with fleet(SinkSpec(SHAPE), SinkSpec(SHAPE)) as sinks, server_for() as server:
        addresses = [sink.address for sink in sinks]
        updated(server, 2, addresses)
        updated(server, 3, addresses)
        report = server.rollback(addresses)
        assert (report.version, report.staged, report.plan.buckets) == ("v2", True, ())
        assert all_serve(sinks, 2)
        with ParameterServer(Config.load(**PATIENT)) as other:
            assert other.rollback(addresses).version == "v3"
        assert all_serve(sinks, 3)
        updated(server, 4, addresses)
        assert server.rollback(addresses).version == "v3"
        assert all_serve(sinks, 3)


def test_given_a_recorded_loader_when_rolled_back_then_the_version_before_is_served() -> None:
    with fleet(SinkSpec(SHAPE, loader=by_name)) as sinks, server_for(commit="auto") as server:
        addresses = [sink.address for sink in sinks]
        for seed in (2, 3):
            updated(server, seed, addresses)
        assert server.rollback(addresses).version == "v2"
        assert all_serve(sinks, 2)


@pytest.mark.parametrize(
    ("settings", "commit", "told"),
    [({"keep_previous": 0}, "staged", "sink 1 at .* has kept none"), ({}, "in_place", "has kept none")],
)
def test_given_a_sink_that_has_kept_nothing_when_rolled_back_then_it_is_named_and_nothing_changes(
    settings: dict[str, int], commit: str, told: str
) -> None:
    with fleet(SinkSpec(SHAPE), SinkSpec(SHAPE, settings=settings)) as sinks, server_for(commit=commit) as server:
        addresses = [sink.address for sink in sinks]
        updated(server, 2, addresses)
        with pytest.raises(UpdateAbortedError, match=told):
            server.rollback(addresses)
        assert all_serve(sinks, 2)


def test_given_an_update_that_failed_while_it_was_staged_then_there_is_no_way_back_and_the_next_one_comes() -> None:
    """Given that the third load fails in a sink, then it serves v2, and what it kept of v1 is gone."""
    faulty = SinkSpec(SHAPE, fault=Fault("load", 40, act="raise"))
    with fleet(faulty) as sinks, server_for(bucket_bytes="512KiB") as server:
        addresses = [sink.address for sink in sinks]
        updated(server, 2, addresses)
        server.register("v3", tensors=weights(3, **SHAPE))
        failed = False
        for _ in range(8):
            try:
                server.update("v3", addresses)
            except UpdateAbortedError:
                failed = True
                break
        assert failed, "the fault did not strike"
        with pytest.raises(UpdateAbortedError, match="has kept none"):
            server.rollback(addresses)
        assert sinks[0].state().served == ""
        updated(server, 4, addresses)
        assert all_serve(sinks, 4)


def test_given_a_sink_that_fails_when_rolled_back_then_all_serve_what_they_did() -> None:
    with (
        fleet(SinkSpec(SHAPE), SinkSpec(SHAPE, fault=Fault("advance", 2, act="raise"))) as sinks,
        server_for() as server,
    ):
        addresses = [sink.address for sink in sinks]
        updated(server, 2, addresses)
        with pytest.raises(UpdateAbortedError, match="injected into advance"):
            server.rollback(addresses)
        assert all_serve(sinks, 2)
        assert server.rollback(addresses).version == "v1"
        assert all_serve(sinks, 1)
