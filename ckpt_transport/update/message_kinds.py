"""The kinds of messages of an update: orders go from the coordinator to members, and each has an answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from ckpt_transport.control import Message


class ToCoordinator(Message, frozen=True):
    """Every message that a coordinator understands derives from this."""


class FromCoordinator(Message, frozen=True, kw_only=True):
    """Everything that only the coordinator may say to a member derives from this.

    Attributes:
        nonce: the member's own, which it has told nobody but this coordinator.
        trace: the ``traceparent`` of the update; empty where it is not traced.
    """

    nonce: str = ""
    trace: str = ""


Answer = TypeVar("Answer", bound=ToCoordinator)


class Order(FromCoordinator, Generic[Answer], frozen=True):
    """Everything that the coordinator asks for in an update derives from this; the type parameter is the answer.

    Attributes:
        update: the name of the update.
    """

    update: str


AnyOrder = Order[Any]


class Reply(ToCoordinator, frozen=True):
    """Everything that a member says in an update once it has joined derives from this.

    Who says it is known by the address from which it comes: so what all of a courier's say alike travels once.

    Attributes:
        update: the name of the update.
    """

    update: str


def messages_of(base: type[Message]) -> Iterator[type[Message]]:
    """The messages that are sent: those of which none is derived."""
    for kind in base.__subclasses__():
        if kind.__subclasses__():
            yield from messages_of(kind)
        else:
            yield kind
