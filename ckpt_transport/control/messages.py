"""A message travels on control sockets as three frames, of which the last is msgpack.

========  =====================================================================
frame     content
========  =====================================================================
protocol  ``ckpt-transport/1``, so that anything else is refused by name
sender    the address of the sender's own mailbox, where answers go
message   a tagged msgspec struct
========  =====================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

import msgspec

from ckpt_transport.control import addresses
from ckpt_transport.decoding import UNREADABLE, prepared
from ckpt_transport.errors import ConfigError, MessageError

PROTOCOL = b"ckpt-transport/1"
MAX_FRAME = 128 << 20
"""No frame is larger. The largest there is carries the plan of an update: 14 MB for a trillion parameters in 138,540
tensors and buckets of 64 MiB, 30 MB with buckets of 4 MiB."""
MAX_SENDER = 300
MAX_REASON = 1000
"""Characters of what is said about somebody else's words."""


class Message(msgspec.Struct, frozen=True, tag=True):
    """Every message derives from this. The tag on the wire is the class name."""


class Heartbeat(Message, frozen=True):
    """The sender's process is alive."""


class Refused(Message, frozen=True):
    """The receiver of an earlier message could not read it, or does not act on it.

    It counts only when it comes back on the connection on which that message went, and is never answered.

    Attributes:
        about: what the message was about, as the update that it named; empty when that is not known.
    """

    reason: str
    about: str = ""


class RouteMessage(Message, frozen=True):
    """Carries what a transport says on one route's control channel.

    Attributes:
        route: its name.
        rank: the sender's rank in the update.
        round: -1 for a plain message, else the number of the exchange it belongs to.
    """

    route: str
    rank: int
    round: int
    payload: bytes


class Codec:
    """Turns messages into frames and back."""

    def __init__(self, types: Sequence[type[Message]] = ()) -> None:
        union: Any = Union[(Heartbeat, Refused, RouteMessage, *types)]
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(prepared(union)).decode

    def frames(self, sender: str, message: Message) -> list[bytes]:
        return [PROTOCOL, sender.encode(), self._encode(message)]

    def parse(self, frames: Sequence[bytes]) -> tuple[str, Message]:
        """The sender's address, as it says itself, and the message.

        Raises:
            MessageError: the frames are not a message of this protocol; says what they are instead.
        """
        if len(frames) != 3 or frames[0] != PROTOCOL:
            first = frames[0][:40] if frames else b""
            raise MessageError(
                f"{len(frames)} frames beginning with {first!r} are not a message of {PROTOCOL.decode()}; "
                "is another program, or another version of ckpt-transport, using this address?"
            )
        try:
            message: Message = self._decode(frames[2])
            if len(frames[1]) > MAX_SENDER:
                raise ConfigError(f"an address of {len(frames[1])} bytes is none")
            return addresses.check(frames[1].decode()), message
        except (ConfigError, *UNREADABLE) as error:
            reason = str(error)[:MAX_REASON]
            raise MessageError(f"unreadable message of {len(frames[2])} bytes: {reason}") from error
