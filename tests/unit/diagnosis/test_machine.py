"""What a machine is found to lack is named with its cure."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from ckpt_transport.diagnosis import Severity, limits, look_at_machine, shared_memory
from ckpt_transport.transports import registry

MEBIBYTE = 1 << 20


def test_given_this_machine_when_it_is_looked_at_then_every_topic_and_every_transport_is_named() -> None:
    topics = [finding.topic for finding in look_at_machine()]
    assert {"settings", "packages", "/dev/shm", "open files", "locked memory", "memory", "RDMA"} <= set(topics)
    assert {f"transport {name}" for name in registry.names()} <= set(topics)


def test_given_whatever_is_no_good_then_there_is_a_cure_for_it() -> None:
    for finding in look_at_machine():
        assert finding.said
        assert finding.severity in (Severity.OK, Severity.NOTE) or finding.cure


def test_given_a_setting_that_cannot_be_read_then_that_is_a_problem_that_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CKPT_TRANSPORT_RING_DEPTH", "many")
    settings = next(iter(look_at_machine()))
    assert settings.severity is Severity.PROBLEM
    assert "CKPT_TRANSPORT_RING_DEPTH" in settings.said


@pytest.mark.parametrize(
    ("limit", "severity"),
    [(256, Severity.WARNING), (65_536, Severity.OK), (resource.RLIM_INFINITY, Severity.OK)],
)
def test_given_a_limit_of_open_files_then_a_low_one_is_a_warning(limit: int, severity: Severity) -> None:
    assert limits.open_files(limit).severity is severity


@pytest.mark.parametrize(
    ("limit", "has_rdma", "severity"),
    [
        (8 * MEBIBYTE, False, Severity.OK),
        (8 * MEBIBYTE, True, Severity.WARNING),
        (4096 * MEBIBYTE, True, Severity.NOTE),
        (resource.RLIM_INFINITY, True, Severity.OK),
    ],
)
def test_given_a_limit_of_locked_memory_then_it_matters_where_there_is_rdma(
    limit: int, has_rdma: bool, severity: Severity
) -> None:
    assert limits.locked_memory(limit, has_rdma=has_rdma).severity is severity


def test_given_no_shared_memory_then_that_is_a_problem(tmp_path: Path) -> None:
    (finding,) = shared_memory.look(tmp_path / "shm")
    assert finding.severity is Severity.PROBLEM
    assert "mount a tmpfs" in finding.cure


def test_given_shared_memory_as_small_as_a_containers_then_the_warning_says_how_to_get_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_memory, "SMALL", 1 << 60)
    (finding,) = shared_memory.look()
    assert finding.severity is Severity.WARNING
    assert "--shm-size" in finding.cure
