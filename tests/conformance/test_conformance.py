"""Every transport there is keeps every promise of the interface."""

from __future__ import annotations

import pytest

from ckpt_transport.testing import CHECKS, Check, LoopbackTransport, launch_in_threads, run
from ckpt_transport.transports import registry
from ckpt_transport.transports.interface import Transport
from ckpt_transport_gloo import GlooTransport
from ckpt_transport_shm import ShmTransport
from tests.available import where_available
from tests.conformance.transports import (
    ApartTransport,
    KeepsTheFirstRun,
    NarrowTransport,
    ReadTransport,
    SocketTransport,
)

PATIENCE = 150.0
"""Seconds for a check, on a busy machine too."""
BETWEEN_PROCESSES: tuple[type[Transport], ...] = (ShmTransport, GlooTransport, ReadTransport, SocketTransport)
APART = ("promised_memory", "every_span_arrives", "reconnect")
CROWDED = ("many_in_flight", "every_span_arrives", "two_routes", "transfers_stay_apart", "sender_dies")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
@pytest.mark.parametrize("transport", BETWEEN_PROCESSES, ids=lambda transport: transport.name)
def test_given_a_transport_between_processes_then_it_keeps_every_promise(
    transport: type[Transport], check: Check
) -> None:
    check(transport, deadline=PATIENCE)


@pytest.mark.parametrize("check", [check for check in CHECKS if check.name in CROWDED], ids=lambda check: check.name)
def test_given_more_broadcasts_than_may_be_under_way_then_they_wait_their_turn_and_keep_every_promise(
    check: Check,
) -> None:
    check(NarrowTransport, deadline=PATIENCE)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
@pytest.mark.parametrize("name", [where_available(name) for name in ("mooncake", "nixl", "ucx")])
def test_given_a_transport_over_a_library_then_it_keeps_every_promise(name: str, check: Check) -> None:
    check(registry.load(name), deadline=PATIENCE)


@pytest.mark.parametrize("check", [check for check in CHECKS if check.name in APART], ids=lambda check: check.name)
def test_given_a_transport_of_memory_that_lies_apart_then_each_span_is_of_the_run_that_it_names(check: Check) -> None:
    check(ApartTransport, deadline=PATIENCE, launcher=launch_in_threads)


def test_given_a_transport_that_takes_all_runs_for_the_first_then_the_check_of_promised_memory_says_so() -> None:
    report = run(KeepsTheFirstRun, only=["promised_memory"], deadline=PATIENCE, launcher=launch_in_threads)
    assert report.failed == ("promised_memory",)
    assert "beyond the region" in str(report)


@pytest.mark.parametrize("check", [check for check in CHECKS if not check.killed], ids=lambda check: check.name)
@pytest.mark.parametrize("transport", [LoopbackTransport, ReadTransport], ids=lambda transport: transport.name)
def test_given_a_transport_between_threads_then_it_keeps_every_promise(
    transport: type[Transport], check: Check
) -> None:
    check(transport, deadline=PATIENCE, launcher=launch_in_threads)
