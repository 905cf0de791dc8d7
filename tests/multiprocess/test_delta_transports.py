"""Deltas come over every transport, through chains and relays too."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ckpt_transport import Config, ParameterServer
from tests.faults.campaign.campaign import available
from tests.fleet import SinkSpec, fleet, weights
from tests.leftovers import left_behind
from tests.multiprocess.test_delta_sinks import some_changed
from tests.patience import PATIENT


@pytest.mark.parametrize("transport", [*available(), "gloo-chain", "gloo+shm"])
def test_given_a_transport_then_deltas_come_over_it_and_are_taken_back(transport: str) -> None:
    settings: dict[str, Any] = {**PATIENT, "delta": "on", "commit": "auto", "transport": transport}
    there = SinkSpec(settings={**PATIENT, "host": "elsewhere"} if "+" in transport else PATIENT)
    with fleet(there, there) as sinks, ParameterServer(Config.load(**settings)) as server:
        addresses = [sink.address for sink in sinks]
        versions = [weights(2)]
        server.publish("step-0", versions[0], addresses)
        for number in (1, 2):
            versions.append(some_changed(versions[-1], number))
            report = server.publish(f"step-{number}", versions[-1], addresses)
            assert report is not None
            assert report.delta is not None
            assert report.delta.base == f"step-{number - 1}", report.delta.reason
            assert set(report.transports) <= set(re.split("[-+]", transport))
            assert all(sink.state().holds(versions[-1]) for sink in sinks)
        server.rollback(addresses)
        assert all(sink.state().holds(versions[1]) for sink in sinks)
    assert not left_behind()
