"""What is a message and what is not: junk is refused by name and never does harm."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st

from ckpt_transport.control import Message
from ckpt_transport.control.messages import ALIVE, PROTOCOL, Codec, Heartbeat, Refused, RouteMessage
from ckpt_transport.errors import MessageError

SENDER = b"ipc:///run/sender"


class Note(Message, frozen=True):
    text: str
    numbers: tuple[int, ...] = ()


codec = Codec([Note])


def packed(**fields: object) -> bytes:
    return msgspec.msgpack.encode(fields)


@pytest.mark.parametrize("message", [Heartbeat(), Refused("no"), RouteMessage("r", -1, b"x"), Note("hello", (1, 2))])
def test_given_a_message_then_it_arrives_as_it_was_with_its_sender(message: Message) -> None:
    assert codec.parse(codec.frames(SENDER.decode(), message)) == (SENDER.decode(), message)


def test_given_a_sign_of_life_then_it_is_one_frame_that_says_whose() -> None:
    (frame,) = Codec.sign_of_life(SENDER.decode())
    assert codec.parse([frame]) == (SENDER.decode(), Heartbeat())


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "0 frames beginning with b''"),
        ([ALIVE], "'' is not an address"),
        ([ALIVE + b"somewhere"], "'somewhere' is not an address"),
        ([ALIVE + b"\xff\xfe"], "utf-8"),
        ([ALIVE + b"ipc:///" + b"x" * 1000], "1007 bytes"),
        ([ALIVE + SENDER, b""], "2 frames"),
        ([b"GET / HTTP/1.1"], "1 frames beginning with b'GET / HTTP/1.1' are not a message of ckpt-transport/1"),
        ([b"x" * 1000, SENDER, packed(type="Heartbeat")], "is another program"),
        ([b"ckpt-transport/2", SENDER, packed(type="Heartbeat")], "b'ckpt-transport/2'.*another version"),
        ([PROTOCOL, SENDER], "2 frames"),
        ([PROTOCOL, SENDER, b"", b""], "4 frames"),
        ([PROTOCOL, SENDER, b""], "unreadable message of 0 bytes"),
        ([PROTOCOL, SENDER, b"\xc1"], "unreadable message of 1 bytes"),
        ([PROTOCOL, SENDER, packed(type="Nope")], "'Nope'"),
        ([PROTOCOL, SENDER, packed(text="x")], "missing required field `type`"),
        ([PROTOCOL, SENDER, packed(type="Note")], "missing required field `text`"),
        ([PROTOCOL, SENDER, packed(type="Note", text=7)], r"Expected `str`, got `int` - at `\$.text`"),
        ([PROTOCOL, SENDER, packed(type="Note", text="", numbers=["1"])], r"at `\$.numbers\[0\]`"),
        ([PROTOCOL, SENDER, b"\x82\xa4type\xa9Heartbeat\xa1x" + b"\x91" * 100_000 + b"\xc0"], "recursion"),
        ([PROTOCOL, SENDER, b"\xdf\xff\xff\xff\xff"], "truncated"),
        ([PROTOCOL, b"\xff\xfe", packed(type="Heartbeat")], "utf-8"),
        ([PROTOCOL, b"", packed(type="Heartbeat")], "'' is not an address"),
        ([PROTOCOL, b"tcp://somewhere:else", packed(type="Heartbeat")], "is not an address"),
    ],
)
def test_given_what_is_not_a_message_then_it_is_refused_by_name(frames: list[bytes], reason: str) -> None:
    with pytest.raises(MessageError, match=reason) as refused:
        codec.parse(frames)
    assert len(str(refused.value)) < 300


@checked(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=4))
def test_given_random_frames_then_parsing_refuses_them(frames: list[bytes]) -> None:
    with pytest.raises(MessageError):
        codec.parse(frames)


@checked(max_examples=500, deadline=None)
@given(st.binary(max_size=60))
def test_given_random_content_then_parsing_answers_or_refuses(content: bytes) -> None:
    try:
        sender, message = codec.parse([PROTOCOL, SENDER, content])
    except MessageError:
        return
    assert sender == SENDER.decode()
    assert isinstance(message, Message)


@checked(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255), st.booleans())
def test_given_a_message_with_one_wrong_byte_then_parsing_answers_or_refuses(at: int, flip: int, cut: bool) -> None:
    content = bytearray(codec.frames("ipc:///x", RouteMessage("route", 2, b"payload"))[2])
    content[at % len(content)] ^= flip
    frames = [PROTOCOL, SENDER, bytes(content[: at % len(content)] if cut else content)]
    try:
        _, message = codec.parse(frames)
    except MessageError:
        return
    assert isinstance(message, Message)
