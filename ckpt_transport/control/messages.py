"""A message travels on control sockets as three frames, of which the last is msgpack, and a sign of life as one.

========  =====================================================================
frame     content
========  =====================================================================
protocol  ``ckpt-transport/1``, so that anything else is refused by name
sender    the address of the sender's own mailbox, where answers go
message   a tagged msgspec struct
========  =====================================================================

The frame of a sign of life is :data:`ALIVE` and the sender's address. Between UNIX sockets there is none:
see :mod:`ckpt_transport.control.touches`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Union

import msgspec

from ckpt_transport.control import addresses
from ckpt_transport.decoding import UNREADABLE, prepared
from ckpt_transport.errors import ConfigError, MessageError

PROTOCOL = b"ckpt-transport/1"
ALIVE = PROTOCOL + b" lives at "
MAX_FRAME = 128 << 20
"""No frame is larger. The largest there is carries the plan of an update: 14 MB for a trillion parameters in 138,540
tensors and buckets of 64 MiB, 30 MB with buckets of 4 MiB."""
MAX_SENDER = 300
KNOWN_SENDERS = 8192
"""Of so many it is remembered that their addresses are such: each says its own with every message."""
MAX_REASON = 1000
"""Characters of what is said about somebody else's words."""


class Message(msgspec.Struct, frozen=True, tag=True):
    """Every message derives from this. The tag on the wire is the class name."""


class Heartbeat(Message, frozen=True):
    """The sender's process is alive. It travels as one frame, save where a courier brings it."""


HEARTBEAT = Heartbeat()


class Refused(Message, frozen=True):
    """The receiver of an earlier message could not read it, or does not act on it.

    It counts only when it comes back on the connection on which that message went, and is never answered.

    Attributes:
        about: what the message was about: the update that it named, or the nonce of a source that came by itself; empty
            when that is not known.
    """

    reason: str
    about: str = ""


class RouteMessage(Message, frozen=True):
    """Carries what a transport says on one route's control channel.

    Attributes:
        route: its name, for which the receiver knows who sends from which address.
        round: -1 for a plain message, else the number of the exchange it belongs to.
    """

    route: str
    round: int
    payload: bytes


class Dispatch(Message, frozen=True):
    """Is for others, to whom the receiver, a courier, hands it on; or comes back to the courier from one of them.

    A courier works for those it watches, and what comes back does so on the connection on which it has handed on.

    Attributes:
        parts: for whom each is, and what is said: the last frame of a message.
        answered: each has an answer, for which the courier waits before it brings any back; or this is such an answer.
    """

    parts: tuple[tuple[tuple[str, ...], bytes], ...]
    answered: bool


class Delivery(Message, frozen=True):
    """Is what others have said to the receiver, brought by a courier.

    Attributes:
        parts: who all say each, and what: the last frame of a message.
    """

    parts: tuple[tuple[tuple[str, ...], bytes], ...]


class Codec:
    """Turns messages into frames and back."""

    def __init__(self, types: Sequence[type[Message]] = ()) -> None:
        union: Any = Union[(Heartbeat, Refused, RouteMessage, Dispatch, Delivery, *types)]
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(prepared(union)).decode

    def frames(self, sender: str, message: Message) -> list[bytes]:
        return [PROTOCOL, sender.encode(), self._encode(message)]

    @staticmethod
    def sign_of_life(sender: str) -> list[bytes]:
        """A :class:`Heartbeat` as it travels."""
        return [ALIVE + sender.encode()]

    def parse(self, frames: Sequence[bytes]) -> tuple[str, Message]:
        """The sender's address, as it says itself, and the message.

        Raises:
            MessageError: the frames are not a message of this protocol; says what they are instead.
        """
        if len(frames) == 1 and frames[0].startswith(ALIVE):
            return self._address(frames[0][len(ALIVE) :], frames[0]), HEARTBEAT
        if len(frames) != 3 or frames[0] != PROTOCOL:
            first = frames[0][:40] if frames else b""
            raise MessageError(
                f"{len(frames)} frames beginning with {first!r} are not a message of {PROTOCOL.decode()}; "
                "is another program, or another version of ckpt-transport, using this address?"
            )
        message = self.decode(frames[2])
        return self._address(frames[1], frames[2]), message

    @staticmethod
    def _address(said: bytes, body: bytes) -> str:
        try:
            return _address_of(said)
        except (ConfigError, *UNREADABLE) as error:
            raise _unreadable(body, error) from error

    def decode(self, body: bytes) -> Message:
        """The message that the last frame carries.

        Raises:
            MessageError: it carries none.
        """
        try:
            message: Message = self._decode(body)
        except UNREADABLE as error:
            raise _unreadable(body, error) from error
        return message


@lru_cache(KNOWN_SENDERS)
def _address_of(said: bytes) -> str:
    if len(said) > MAX_SENDER:
        raise ConfigError(f"an address of {len(said)} bytes is none")
    return addresses.check(said.decode())


def _unreadable(body: bytes, error: BaseException) -> MessageError:
    return MessageError(f"unreadable message of {len(body)} bytes: {str(error)[:MAX_REASON]}")
