"""What a machine is found to lack is named with its cure."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from ckpt_transport.diagnosis import Severity, limits, look_at_machine, network, shared_memory
from ckpt_transport.transports import registry

MEBIBYTE = 1 << 20


def test_given_this_machine_when_it_is_looked_at_then_every_topic_and_every_transport_is_named() -> None:
    topics = [finding.topic for finding in look_at_machine()]
    assert {
        "settings",
        "packages",
        "/dev/shm",
        "open files",
        "locked memory",
        "memory",
        "RDMA",
        "address",
        "clock",
    } <= set(topics)
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


@pytest.mark.parametrize(
    ("speed", "severity", "said"),
    [("25000", Severity.OK, "25 Gbit/s"), ("1000", Severity.NOTE, "1 Gbit/s"), ("-1", Severity.OK, "does not say")],
)
def test_given_an_interface_that_is_up_then_a_slow_one_is_noted(
    tmp_path: Path, speed: str, severity: Severity, said: str
) -> None:
    for name, state in (("eth0", "up"), ("eth1", "down"), ("docker0", "up")):
        folder = tmp_path / name
        folder.mkdir()
        for file, text in (("operstate", state), ("speed", speed), ("mtu", "1500")):
            (folder / file).write_text(f"{text}\n")
        if name != "docker0":
            (folder / "device").mkdir()
    (finding,) = network.interfaces(tmp_path)
    assert (finding.topic, finding.severity) == ("interface eth0", severity)
    assert said in finding.said


@pytest.mark.parametrize(
    ("bound", "severity"),
    [
        ("203.0.113.1", Severity.PROBLEM),
        ("no host", Severity.PROBLEM),
        ("0.0.0.0", Severity.PROBLEM),
        ("127.0.0.1", Severity.NOTE),
        ("localhost", Severity.NOTE),
    ],
)
def test_given_an_address_that_others_do_not_reach_then_those_that_they_do_are_named(
    bound: str, severity: Severity
) -> None:
    finding = network.address(bound, {"eth0": "10.0.0.4"})
    assert finding.severity is severity
    assert bound in finding.said
    assert "10.0.0.4 (eth0)" in finding.cure


def test_given_a_host_without_a_network_then_loopback_is_as_it_should_be() -> None:
    assert network.address("127.0.0.1", {}).severity is Severity.OK
