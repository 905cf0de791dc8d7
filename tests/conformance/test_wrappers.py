"""Wrapped transports keep every promise; faults happen where they were ordered."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ckpt_transport.testing import CHECKS, Check, FaultKind, launch
from ckpt_transport.transports.interface import Transport
from ckpt_transport_gloo import GlooTransport
from ckpt_transport_shm import ShmTransport
from tests.conformance import bodies
from tests.conformance.transports import ReadTransport, SocketTransport

DEADLINE = 150.0
INNER = pytest.mark.parametrize(
    "inner", [ShmTransport, GlooTransport, SocketTransport], ids=lambda transport: transport.name
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
@pytest.mark.parametrize("transport", [bodies.slow, bodies.harmless], ids=lambda factory: factory().name)
def test_given_a_wrapped_transport_then_it_keeps_every_promise(
    transport: Callable[[], Transport], check: Check
) -> None:
    check(transport, deadline=DEADLINE)


def test_given_an_operation_that_is_not_due_when_its_endpoint_breaks_then_it_fails_at_once() -> None:
    """As fast as the ranks meet and abort."""
    (broken_endpoint,) = (check for check in CHECKS if check.name == "broken_endpoint")
    broken_endpoint(bodies.very_late, deadline=DEADLINE)


def test_given_latency_and_bandwidth_then_transfers_take_at_least_as_long() -> None:
    for outcome in launch(bodies.measure, 2, deadline=DEADLINE):
        one, two = outcome.value
        assert one >= 2 * bodies.LATENCY  # its latency, and its bytes
        assert two >= 3 * bodies.LATENCY  # one latency, and the bytes of both


def test_given_a_slow_wrapper_then_the_cost_model_is_told() -> None:
    slow, inner = bodies.very_slow(), ReadTransport
    assert slow.name == "latency(process-vm-readv)"
    assert slow.traits.latency == inner.traits.latency + bodies.LATENCY
    assert slow.traits.bandwidth == bodies.SIZE / bodies.LATENCY


def seen(kind: FaultKind, inner: type[Transport], victim: int) -> list[str]:
    outcomes = launch(bodies.meet_fault, 3, kind, inner, victim, deadline=DEADLINE, silence=2.0)
    return ["killed" if outcome.died else str(outcome.value or outcome) for outcome in outcomes]


@INNER
def test_given_a_completion_that_fails_then_the_route_is_broken(inner: type[Transport]) -> None:
    assert seen(FaultKind.FAIL, inner, 1)[1] == "TransferError"


@INNER
def test_given_bytes_that_are_lost_then_they_read_as_zero(inner: type[Transport]) -> None:
    sender, victim, other = seen(FaultKind.DROP, inner, 1)
    assert (sender, victim, other) == ("done, 0 zeros", "done, 5 zeros", "done, 0 zeros")


def test_given_a_post_that_is_refused_then_the_transport_inside_never_hears_of_it() -> None:
    sender, victim, other = seen(FaultKind.FAIL_POST, ShmTransport, 1)
    assert victim == "injected: rank 1 cannot post transfer 1"
    assert sender == "PeerLostError"
    assert other in ("PeerLostError", "done, 0 zeros")


def test_given_an_operation_that_never_ends_then_it_can_be_aborted() -> None:
    """The victim sees why it was aborted, or that its endpoint is broken if the transfer had ended inside."""
    sender, other, victim = seen(FaultKind.NEVER, ShmTransport, 2)
    assert victim in ("TransferError", "EndpointBrokenError")
    assert sender == "PeerLostError"
    assert other in ("PeerLostError", "done, 0 zeros")


def test_given_a_rank_that_is_killed_then_the_others_lose_it() -> None:
    sender, victim, other = seen(FaultKind.KILL, SocketTransport, 1)
    assert victim == "killed"
    assert sender in ("PeerLostError", "done, 0 zeros")
    assert other in ("PeerLostError", "done, 0 zeros")
