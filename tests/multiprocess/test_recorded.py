"""Updates between real processes, of modules that load through a loader of their own."""

from __future__ import annotations

import pytest

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import TaintedError
from tests.fleet import SinkSpec, by_name, fleet, weights
from tests.injection import Fault
from tests.patience import PATIENT

TRANSPORTS = ("shm", "gloo")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_given_a_loader_then_it_runs_for_the_first_version_and_is_replayed_from_then_on(transport: str) -> None:
    """Given slots that hold a few tensors, when versions follow each other, then the second needs no loader."""
    settings = Config.load(transport=transport, bucket_bytes="600KiB", **PATIENT)
    with fleet(SinkSpec(loader=by_name), SinkSpec()) as sinks, ParameterServer(settings) as server:
        told = []
        for seed in (2, 3, 4):
            server.register(f"v{seed}", tensors=weights(seed))
            report = server.update(f"v{seed}", [sink.address for sink in sinks])
            assert report is not None
            assert all(sink.state().holds(weights(seed)) for sink in sinks)
            told.append(report.apply_summary)
    assert [list(each) for each in told] == [[1]] * 3
    assert "found to be the same" in told[0][1]
    assert told[1][1].startswith("replayed in")
    assert told[2][1].startswith("replayed in")


def test_given_verify_apply_always_then_each_update_is_compared() -> None:
    spec = SinkSpec(loader=by_name, settings={"verify_apply": "always"})
    with fleet(spec) as sinks, ParameterServer(Config.load(**PATIENT)) as server:
        for seed in (2, 3):
            server.register(f"v{seed}", tensors=weights(seed))
            report = server.update(f"v{seed}", [sinks[0].address])
            assert report is not None
            assert "found to be the same" in report.apply_summary[1]
            assert sinks[0].state().holds(weights(seed))


def test_given_a_failure_half_way_then_the_next_update_records_again() -> None:
    """Given a replay that was proved, when an update breaks off in the middle, then the next one trusts nothing."""
    settings = Config.load(transport="gloo", bucket_bytes="600KiB", **PATIENT)
    broken = SinkSpec(loader=by_name, fault=Fault("load", count=6, act="raise"))
    with fleet(broken) as sinks, ParameterServer(settings) as server:
        sink = sinks[0]
        for seed in (2, 3, 4):
            server.register(f"v{seed}", tensors=weights(seed))
        server.update("v2", [sink.address])
        with pytest.raises(TaintedError, match="injected into load"):
            server.update("v3", [sink.address])
        assert sink.state().tainted
        report = server.update("v4", [sink.address])
        assert report is not None
        assert report.apply_summary[1].startswith("recorded in")
        assert sink.state().holds(weights(4))
