"""Whatever strangers say to a sink, it is answered or refused, and the sink stays; so is what only a source has."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from ckpt_transport import Config, ParameterServer, ask_version
from ckpt_transport.control.messages import PROTOCOL, Codec, Refused
from ckpt_transport.service import questions as q
from tests.fleet import SinkProcess, SinkSpec, fleet, weights
from tests.patience import DEADLINE, PATIENT
from tests.site import SOCKETS, make_site, use

PATIENCE = 120_000
"""Milliseconds."""


@pytest.fixture(scope="module")
def sink() -> Iterator[SinkProcess]:
    """One for all tests: nothing that is said to it changes what it serves."""
    with fleet(SinkSpec()) as (running,):
        yield running
        with ParameterServer(Config.load(**PATIENT)) as source:
            source.register("v2", tensors=weights(2))
            source.update("v2", [running.address])
        assert running.state().holds(weights(2))


@pytest.fixture
def stranger(sink: SinkProcess) -> Iterator[zmq.Socket[bytes]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    socket.connect(sink.address)
    yield socket
    context.destroy(0)


def say(socket: zmq.Socket[bytes], sender: str, **message: Any) -> None:
    socket.send_multipart([PROTOCOL, sender.encode(), msgspec.msgpack.encode(message)])


def answer(socket: zmq.Socket[bytes]) -> object:
    assert socket.poll(PATIENCE), "no answer"
    return Codec(q.COORDINATOR).parse(socket.recv_multipart())[1]


def serves_on(sink: SinkProcess) -> None:
    assert ask_version(sink.address, timeout=DEADLINE).version == "v1"
    state = sink.state()
    assert (state.version, state.tainted, state.served) == ("v1", "", "")
    assert state.holds(weights(1))


@pytest.mark.parametrize("sender", ["tcp://-:1", "tcp://..:1", "tcp://[::1%zzz]:x", "ipc://x", "", "x" * 10_000])
def test_given_a_sender_with_an_address_that_is_none_then_it_is_told_and_the_sink_serves_on(
    sink: SinkProcess, stranger: zmq.Socket[bytes], sender: str
) -> None:
    say(stranger, sender, type="AskVersion")
    assert isinstance(answer(stranger), Refused)
    serves_on(sink)


@pytest.mark.parametrize(
    "sender", ["tcp://127.0.0.1:0", "tcp://[::1%zzz]:1", "ipc:///tmp", "ipc:////", "tcp://no.where:1"]
)
def test_given_an_asker_that_cannot_be_reached_then_it_is_answered_where_it_asked(
    sink: SinkProcess, stranger: zmq.Socket[bytes], sender: str
) -> None:
    say(stranger, sender, type="AskVersion")
    served = answer(stranger)
    assert isinstance(served, q.ServedVersion)
    assert served.version == "v1"


def test_given_a_claim_in_the_name_of_another_host_then_nobody_has_it_and_nothing_is_sent_there(
    sink: SinkProcess, stranger: zmq.Socket[bytes]
) -> None:
    """Given no secret, so that everything that leaves this host would be in the clear."""
    say(stranger, "tcp://192.0.2.7:9", type="Claim", number=1, leader="somebody", begun=[], ended=[])
    told = answer(stranger)
    assert isinstance(told, Refused)
    assert "secret_file" in told.reason
    serves_on(sink)


def test_given_a_transport_that_only_the_source_has_then_another_one_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a plugin of a third party at the source alone, and no transport by name."""
    with fleet(SinkSpec(), SinkSpec()) as sinks:
        site = make_site(tmp_path / "site")
        monkeypatch.syspath_prepend(site)
        use(site)
        with ParameterServer(Config.load(**PATIENT)) as source:
            source.register("v2", tensors=weights(2))
            report = source.update("v2", [running.address for running in sinks])
        assert report is not None
        assert SOCKETS not in {route.transport for route in report.plan.routes}
        assert all(running.state().holds(weights(2)) for running in sinks)


def test_given_thousands_of_questions_then_the_sink_has_no_more_descriptors_than_before(sink: SinkProcess) -> None:
    """Given a health check that asks again and again, from everywhere, then whoever asked is forgotten."""

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{sink.process.pid}/fd"))

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    asker: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    try:
        asker.connect(sink.address)
        say(asker, "ipc:///nobody", type="AskVersion")
        assert isinstance(answer(asker), q.ServedVersion)
        before = descriptors()
        for number in range(2500):
            say(asker, f"ipc:///nobody/{number}", type="AskVersion")
            assert isinstance(answer(asker), q.ServedVersion)
        for _ in range(20):
            ask_version(sink.address, timeout=DEADLINE)
        deadline = time.monotonic() + DEADLINE
        while descriptors() >= before + 10:
            assert time.monotonic() < deadline, "whoever asked is not forgotten"
            time.sleep(0.02)
    finally:
        context.destroy(0)
    serves_on(sink)


def test_given_messages_for_routes_that_nobody_has_then_memory_does_not_grow(
    sink: SinkProcess, stranger: zmq.Socket[bytes]
) -> None:
    def memory() -> int:
        return int(Path(f"/proc/{sink.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = memory()
    for number in range(2000):
        message = {"route": f"r{number}", "rank": 1, "round": -1, "payload": bytes(100_000)}
        say(stranger, "ipc:///nobody", type="RouteMessage", **message)
    say(stranger, "ipc:///nobody", type="AskVersion")
    assert isinstance(answer(stranger), q.ServedVersion), "it has read all that came before"
    assert memory() < before + 100e6
