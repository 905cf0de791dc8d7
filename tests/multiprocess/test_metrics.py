"""Sources and sinks export what becomes of versions, each from its own process, on ports next to each other."""

from __future__ import annotations

import time
import urllib.request

import pytest

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import TaintedError, UpdateAbortedError
from ckpt_transport.events import Event, UpdateBegan, UpdateEnded, observe
from tests.fleet import SinkSpec, fleet, weights
from tests.injection import Fault
from tests.patience import DEADLINE, PATIENT
from tests.support.ports import free_port

SEVERAL = 4
"""Ports next to each other."""


def scraped(port: int) -> str:
    """What the processes export that have taken a port from this one on."""
    pages = []
    for number in range(port, port + SEVERAL):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{number}/metrics", timeout=DEADLINE) as page:
                pages.append(page.read().decode())
        except OSError:
            continue
    return "\n".join(pages)


def shows(port: int, *lines: str) -> str:
    """Wait until all these lines are exported."""
    deadline = time.monotonic() + DEADLINE
    while missing := [line for line in lines if line not in (page := scraped(port))]:
        assert time.monotonic() < deadline, f"{missing} is not in\n{page}"
        time.sleep(0.2)
    return page


def value(page: str, sample: str) -> float:
    """Of a sample that is exported once."""
    (line,) = [line for line in page.splitlines() if line.startswith(sample)]
    return float(line.rpartition(" ")[2])


def test_given_two_sinks_when_versions_come_and_are_taken_back_then_each_process_exports_its_part() -> None:
    port = free_port(neighbours=SEVERAL - 1)
    settings = {**PATIENT, "metrics": f"127.0.0.1:{port}", "commit": "staged", "transport": "shm"}
    spec = SinkSpec(settings=settings)
    with fleet(spec, spec) as sinks, ParameterServer(Config.load(**settings), rank=0, world_size=1) as server:
        addresses = [sink.address for sink in sinks]
        for seed in (2, 3):
            server.register(f"v{seed}", tensors=weights(seed))
            server.update(f"v{seed}", addresses)
        served = [f'ckpt_transport_version_info{{sink="sink {number}",version="v3"}} 1.0' for number in (0, 1)]
        moved = 2 * 2 * sum(tensor.nbytes for tensor in weights(2).values())
        page = shows(port, *served, 'ckpt_transport_updates_total{kind="update",outcome="committed"} 2.0')
        assert value(page, 'ckpt_transport_received_bytes_total{link="host",transport="shm"}') >= moved
        assert value(page, 'ckpt_transport_staging_bytes{sink="sink 1"}') == moved / 4
        server.rollback(addresses)
        served = [f'ckpt_transport_version_info{{sink="sink {number}",version="v2"}} 1.0' for number in (0, 1)]
        page = shows(port, *served, 'ckpt_transport_updates_total{kind="rollback",outcome="committed"} 1.0')
        assert 'version="v3"' not in page
        assert 'ckpt_transport_held_seconds_count{kind="update"} 4.0' in page


@pytest.mark.parametrize(
    ("where", "error", "outcome"), [("hold", UpdateAbortedError, "aborted"), ("load", TaintedError, "tainted")]
)
def test_given_an_update_that_fails_then_whoever_watches_is_told_how_and_why(
    where: str, error: type[Exception], outcome: str
) -> None:
    told: list[Event] = []
    stop = observe(told.append)
    with (
        fleet(SinkSpec(settings=PATIENT, fault=Fault(where, act="raise"))) as (sink,),
        ParameterServer(Config.load(transport="gloo", **PATIENT), rank=0, world_size=1) as server,
    ):
        server.register("v2", tensors=weights(2))
        with pytest.raises(error) as caught:
            server.update("v2", [sink.address])
    stop()
    began, ended = told
    assert isinstance(began, UpdateBegan)
    assert isinstance(ended, UpdateEnded)
    assert began.update == ended.update
    assert (ended.kind, ended.version, ended.outcome) == ("update", "v2", outcome)
    assert ended.reason == str(caught.value)
    assert "plan" in ended.phases
