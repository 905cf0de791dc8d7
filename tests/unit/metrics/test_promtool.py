"""Prometheus's own tool accepts the alerts and the metrics, and fires each alert when it should."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ckpt_transport.events import ServingChanged, UpdateEnded
from ckpt_transport.metrics import Metrics

PROMTOOL = shutil.which("promtool") or ""
ALERTS = Path(__file__).parents[3] / "docs" / "monitoring" / "alerts.yml"
SITUATIONS = Path(__file__).with_name("alerts_test.yml")
pytestmark = pytest.mark.skipif(not PROMTOOL, reason="promtool is missing: apt-get install prometheus")


def promtool(*arguments: str | Path, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [PROMTOOL, *arguments]
    return subprocess.run(command, cwd=SITUATIONS.parent, input=given, capture_output=True, timeout=60)


def test_given_the_alerts_then_prometheus_accepts_them() -> None:
    checked = promtool("check", "rules", "--lint-fatal", ALERTS)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_given_a_fleet_in_each_situation_then_its_alert_fires_and_no_other() -> None:
    fired = promtool("test", "rules", SITUATIONS)
    assert fired.returncode == 0, fired.stdout + fired.stderr


def test_given_metrics_of_updates_and_sinks_then_prometheus_finds_nothing_to_mend() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics(
        UpdateEnded(
            at=10.0,
            update="5f0c",
            kind="update",
            version="v2",
            outcome="committed",
            seconds=1.5,
            phases={"plan": 0.5, "run": 1.0},
            held={"sink 0": 0.02},
            nbytes=1000,
            transports=("gloo", "shm"),
            lost=("sink 2",),
        )
    )
    metrics(ServingChanged(at=5.0, update="", sink='sink "0"\n', version="v1", tainted="half-way"))
    checked = promtool("check", "metrics", given=generate_latest(registry))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert not checked.stderr, checked.stderr
