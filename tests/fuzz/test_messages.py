"""Frames of the control plane, from anybody."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st

from ckpt_transport.control import Message
from ckpt_transport.control.messages import PROTOCOL, Codec, Heartbeat, Refused, RouteMessage
from ckpt_transport.service import questions as q
from tests.faults.test_any_message import said_as
from tests.fuzz.damage import BURSTS, changed, damaged
from tests.fuzz.fuzzing import fuzz

KINDS: list[type[Message]] = [*q.PARTICIPANT, *q.COORDINATOR, Heartbeat, Refused, RouteMessage]
CODECS = (Codec(q.PARTICIPANT), Codec(q.COORDINATOR))
SENDER = b"ipc:///run/x"
contents = st.one_of([said_as(kind) for kind in KINDS])


def read(frames: list[bytes]) -> None:
    for codec in CODECS:
        codec.parse(frames)


def test_given_frames_of_anybody_then_they_are_a_message_or_a_message_error() -> None:
    protocols = st.one_of(st.just(PROTOCOL), st.binary(max_size=20))
    senders = st.one_of(damaged([SENDER, b"tcp://127.0.0.1:1", b"tcp://[::1]:1"]), st.binary(max_size=400))
    fuzz(st.tuples(protocols, senders, st.binary(max_size=99)).map(list), read)
    fuzz(st.lists(st.binary(max_size=20), max_size=5), read)


def test_given_a_message_of_any_kind_that_is_damaged_then_it_is_a_message_or_a_message_error() -> None:
    def framed(data: bytes) -> list[bytes]:
        return [PROTOCOL, SENDER, data]

    fuzz(contents.map(msgspec.msgpack.encode).flatmap(lambda data: damaged([data])).map(framed), read)
    fuzz(st.sampled_from(BURSTS).map(framed), read)


def test_given_a_message_with_odd_values_then_it_is_a_message_or_a_message_error() -> None:
    def framed(content: Any) -> list[bytes]:
        return [PROTOCOL, SENDER, msgspec.msgpack.encode(content)]

    fuzz(contents.flatmap(lambda content: changed([content])).map(framed), read, examples=200)
