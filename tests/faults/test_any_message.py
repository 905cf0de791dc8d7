"""Any messages, from anybody, in any state of a member: it goes on, and changes only as an update says."""

from __future__ import annotations

import enum
import threading
import time
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
import zmq
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from ckpt_transport import Config, ParameterServer, Sink, ask_version
from ckpt_transport.control import Mailbox, Message
from ckpt_transport.control.messages import PROTOCOL, Heartbeat, Refused, RouteMessage
from ckpt_transport.engine import LoadedBucket
from ckpt_transport.memory import Fence
from ckpt_transport.service import questions as q
from ckpt_transport.update import messages as m
from ckpt_transport_torch.engine import TorchEngine
from tests.fleet import model, weights
from tests.patience import DEADLINE, PATIENT

SHAPE: dict[str, Any] = {"layers": 2, "width": 16}
KINDS: list[type[Message]] = [*q.PARTICIPANT, *q.COORDINATOR, Heartbeat, Refused, RouteMessage]
NAMES = ["", "u", "v1", "v9", "THE UPDATE", "ipc:///nobody", "THE SINK", "nosuch", "shm", "0" * 32]
"""Texts; those in capitals stand for what a stranger might have learnt."""
SENDERS = ["THE COORDINATOR", "THE SINK", "ipc:///nobody", "tcp://127.0.0.1:9", "tcp://192.0.2.7:9"]


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a field of a message, as msgpack has them."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return st.none() if type(None) in arguments else values(arguments[0])
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3)
    if origin is list:
        return st.just([])
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=2)
    if isinstance(annotation, type) and issubclass(annotation, enum.StrEnum):
        return st.sampled_from([str(each.value) for each in annotation])
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return fields(annotation)
    kinds: dict[Any, st.SearchStrategy[Any]] = {
        str: st.sampled_from(NAMES),
        int: st.integers(-2, 5),
        float: st.sampled_from([0.0, -1.0, 1e9]),
        bool: st.booleans(),
        bytes: st.binary(max_size=20),
    }
    return kinds[annotation]


def fields(kind: type[msgspec.Struct]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({name: values(each) for name, each in typing.get_type_hints(kind).items()})


def said_as(kind: type[Message]) -> st.SearchStrategy[dict[str, Any]]:
    """Messages of a kind, as msgpack has them."""
    return fields(kind).map(lambda content: {"type": kind.__name__, **content})


unhurried = settings(
    max_examples=30,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

messages = st.one_of([said_as(kind) for kind in KINDS])
letters = st.tuples(st.sampled_from(SENDERS), messages)


def frames(sender: str, content: dict[str, Any]) -> list[bytes]:
    return [PROTOCOL, sender.encode(), msgspec.msgpack.encode(content)]


class Storm:
    """A stranger that connects to a mailbox and says things in other people's names."""

    def __init__(self, where: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._socket.connect(where)
        self._turn = threading.Lock()
        self.letters: list[tuple[str, dict[str, Any]]] = []
        self.learnt: dict[str, str] = {}

    def blow(self) -> None:
        """Say everything."""
        with self._turn:
            for sender, message in self.letters if not self._socket.closed else []:
                content = {key: self._known(value) for key, value in message.items()}
                self._socket.send_multipart(frames(self.learnt.get(sender, sender), content))
        time.sleep(0.002)

    def _known(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._known(each) for each in value]
        return self.learnt.get(value, value) if isinstance(value, str) else value

    def close(self) -> None:
        with self._turn:
            self._context.destroy(0)


class Stormy(TorchEngine):
    """An engine in whose update a stranger speaks in every phase."""

    storms: Sequence[Storm] = ()

    def blow(self) -> None:
        for storm in self.storms:
            storm.blow()

    def ties(self) -> tuple[frozenset[str], ...]:
        self.blow()
        return super().ties()

    def hold(self) -> int:
        self.blow()
        return super().hold()

    def advance(self, forwards: int, timeout: float) -> None:
        self.blow()
        super().advance(forwards, timeout)

    def load(self, pieces: LoadedBucket) -> Fence | None:
        self.blow()
        return super().load(pieces)

    def finish(self) -> None:
        self.blow()
        super().finish()

    def resume(self) -> float:
        self.blow()
        return super().resume()


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    running = Sink(Stormy(model(1, **SHAPE)), version="v1", config=Config.load(**PATIENT)).start()
    yield running
    running.close()


GIVEN_UP = {"type": "Aborted", "update": "", "tainted": True, "reason": "a stranger says so", "nonce": "guessed"}


@unhurried
@example(said=[("THE SINK", GIVEN_UP)], version=2)
@given(said=st.lists(letters, min_size=1, max_size=12), version=st.integers(2, 9))
def test_given_an_update_then_no_stranger_stops_or_changes_it(
    sink: Sink, said: list[tuple[str, dict[str, Any]]], version: int
) -> None:
    """Given anything that is said to both in every phase, in each other's name, and to the sink with its update."""
    engine = sink._engine
    assert isinstance(engine, Stormy)
    with ParameterServer(Config.load(**PATIENT, bucket_bytes=1024)) as source:
        source.register(f"v{version}", tensors=weights(version, **SHAPE))
        source.register("v1", tensors=weights(1, **SHAPE))
        source.update("v1", [sink.address])
        mailbox = source._here.mailbox
        assert mailbox is not None
        at_sink, _ = engine.storms = Storm(sink.address), Storm(mailbox.address)
        try:
            for storm in engine.storms:
                storm.letters = said
                storm.learnt = {"THE COORDINATOR": mailbox.address, "THE SINK": sink.address}

            def learn() -> None:
                follower = sink._follower
                assert follower is not None
                at_sink.learnt["THE UPDATE"] = follower.update
                engine.blow()

            report = source.update(f"v{version}", [sink.address], before_hold=learn)
            assert report is not None
            assert not report.lost
            engine.blow()
            assert (sink.version, sink.tainted) == (f"v{version}", "")
            assert ask_version(sink.address, timeout=DEADLINE).version == f"v{version}"
            expected = weights(version, **SHAPE)
            assert all(tensor.equal(expected[name]) for name, tensor in engine._module.state_dict().items())
        finally:
            for storm in engine.storms:
                storm.close()
            engine.storms = ()


orders = [said_as(kind) for kind in q.PARTICIPANT if issubclass(kind, m.FromCoordinator)]


@unhurried
@given(said=st.lists(st.one_of(orders), max_size=8))
def test_given_a_coordinator_that_says_anything_then_nothing_is_served_that_was_not_brought(
    sink: Sink, said: list[dict[str, Any]]
) -> None:
    """Given the real coordinator, the right nonce, and orders in any order."""
    before = sink.version, sink.tainted
    with Mailbox(types=q.COORDINATOR, interval=0.1) as leader:
        leader.watch(sink.address)
        leader.send(sink.address, m.Invite("THE UPDATE", "v8", sink.address, ()))
        received = leader.receive(DEADLINE)
        assert received is not None
        challenge = received[1]
        assert isinstance(challenge, m.Challenge)
        nonce = challenge.nonce
        leader.send(sink.address, m.Invite("THE UPDATE", "v8", sink.address, (), nonce=nonce))
        for content in said:
            known = {"update": "THE UPDATE", "nonce": nonce}
            known = {name: value for name, value in known.items() if name in content}
            leader._sockets.connections.send(sink.address, frames(leader.address, {**content, **known}))
        leader.send(sink.address, m.Abort("THE UPDATE", "the end", nonce=nonce))
        leader.send(sink.address, q.AskVersion())
        while (received := leader.receive(DEADLINE)) is not None and not isinstance(received[1], q.ServedVersion):
            pass
        assert received is not None
        assert isinstance(received[1], q.ServedVersion)
        assert (received[1].version, received[1].tainted, received[1].update) == (*before, "")
        assert (sink.version, sink.tainted) == before
