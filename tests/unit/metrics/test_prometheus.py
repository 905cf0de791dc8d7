"""Metrics say what events say, under names that the dashboard and the alerts know."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import ConfigError
from ckpt_transport.events import BytesReceived, ServingChanged, UpdateEnded
from ckpt_transport.metrics import Metrics

MONITORING = Path(__file__).parents[3] / "docs" / "monitoring"
PAGE = MONITORING.parent / "how-to" / "watch-a-fleet.md"
COMMITTED = UpdateEnded(
    at=10.0,
    update="5f0c",
    kind="update",
    version="v2",
    outcome="committed",
    seconds=1.5,
    phases={"plan": 0.5, "run": 1.0},
    held={"sink 0": 0.02, "sink 1": 0.03},
    nbytes=1000,
    transports=("gloo", "shm"),
    received=(BytesReceived("gloo", True, 1000), BytesReceived("shm", False, 2000)),
    lost=("sink 2",),
)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def names(registry: CollectorRegistry) -> set[str]:
    """Of all samples, as Prometheus stores them."""
    return {sample.name for family in registry.collect() for sample in family.samples}


def test_given_updates_that_end_then_they_are_counted_by_outcome_and_timed(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    for outcome in ("committed", "committed", "aborted"):
        metrics(UpdateEnded(at=10.0, update="1", kind="update", version="v2", outcome=outcome, seconds=2.0, nbytes=7))
    metrics(COMMITTED)

    def value(name: str, **labels: str) -> Any:
        return registry.get_sample_value(f"ckpt_transport_{name}", labels)

    assert value("updates_total", kind="update", outcome="committed") == 3
    assert value("updates_total", kind="update", outcome="aborted") == 1
    assert value("update_seconds_sum", kind="update") == 7.5
    assert value("phase_seconds_total", kind="update", phase="run") == 1.0
    assert value("held_seconds_count", kind="update") == 2
    assert value("bytes_total", transport="gloo+shm") == 1000
    assert value("bytes_total", transport="") == 14
    assert value("received_bytes_total", transport="gloo", link="network") == 1000
    assert value("received_bytes_total", transport="shm", link="host") == 2000
    assert value("members_lost_total") == 1


def test_given_a_sink_that_serves_another_version_then_the_one_before_is_named_no_more(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    serves = ServingChanged(at=5.0, update="", sink="sink 0", version="v1")
    metrics(serves)
    metrics(ServingChanged(at=6.0, update="5f0c", sink="sink 0", version="v1", tainted="half-way"))
    assert registry.get_sample_value("ckpt_transport_tainted", {"sink": "sink 0"}) == 1
    assert registry.get_sample_value("ckpt_transport_version_timestamp_seconds", {"sink": "sink 0"}) == 5.0
    metrics(ServingChanged(at=7.0, update="5f0d", sink="sink 0", version="v2"))
    assert registry.get_sample_value("ckpt_transport_version_info", {"sink": "sink 0", "version": "v1"}) is None
    assert registry.get_sample_value("ckpt_transport_version_info", {"sink": "sink 0", "version": "v2"}) == 1
    assert registry.get_sample_value("ckpt_transport_version_timestamp_seconds", {"sink": "sink 0"}) == 7.0
    assert registry.get_sample_value("ckpt_transport_tainted", {"sink": "sink 0"}) == 0


@pytest.mark.parametrize("file", ["grafana.json", "alerts.yml"])
def test_given_a_dashboard_and_alerts_then_every_metric_that_they_name_is_there(
    file: str, metrics: Metrics, registry: CollectorRegistry
) -> None:
    metrics(COMMITTED)
    metrics(ServingChanged(at=5.0, update="", sink="sink 0", version="v1"))
    text = (MONITORING / file).read_text()
    expressions = re.findall(r'"expr": "(.*)"' if file.endswith("json") else r"expr: (.*)", text)
    named = {name for expression in expressions for name in re.findall(r"ckpt_transport_\w+", expression)}
    assert len(named) > 3
    assert named <= names(registry)
    documented = set(re.findall(r"`(ckpt_transport_\w+)`", PAGE.read_text()))
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names(registry) if not name.endswith("_created")}
    assert documented == shown


def test_given_the_dashboard_then_it_is_json_with_a_place_for_each_panel() -> None:
    dashboard = json.loads((MONITORING / "grafana.json").read_text())
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places) > 5
    assert all(panel["title"] and panel["description"] and panel["targets"] for panel in dashboard["panels"])


@pytest.mark.parametrize("address", ["9464", "localhost:", "localhost:port", "localhost:70000", "192.0.2.1:9464"])
def test_given_an_address_that_is_none_then_it_is_named_when_a_server_is_made(address: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(address.split(":")[0])):
        ParameterServer(Config.load(metrics=address), rank=0, world_size=1)
