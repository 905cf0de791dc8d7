"""An inbox holds what has arrived and was not read yet. Senders decide how much there is, so all of it is bounded."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ckpt_transport.control.messages import Message, RouteMessage

INBOX_MESSAGES = 10_000
INBOX_BYTES = 1 << 30
LATER_MESSAGES = 1000
"""Messages that were read and set aside for another time."""
ROUTE_BYTES = 64 << 20
"""Unread payload of one route: a member says READY for every bucket in tens of bytes."""
EARLY_BYTES = 1 << 20
"""Payload for routes that are not open, all together: of members that were a moment faster, and of strangers."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Letter:
    """A letter is a message that waits to be read.

    Attributes:
        sender: the address of its mailbox, as it says itself.
        connection: what a router calls the connection it came on; empty when it came back on one of our own.
        nbytes: how large it was.
        by_courier: a courier has brought it, and brings the answer back.
    """

    sender: str
    message: Message
    connection: bytes
    nbytes: int
    by_courier: bool = False


class Inbox:
    """Keeps the messages for the participant itself, oldest first."""

    def __init__(self) -> None:
        self._letters: deque[Letter] = deque()
        self._later: deque[Letter] = deque(maxlen=LATER_MESSAGES)
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._letters)

    def __iter__(self) -> Iterator[Letter]:
        return iter(tuple(self._letters))

    def add(self, letter: Letter) -> bool:
        """Whether there was room for it."""
        if len(self._letters) >= INBOX_MESSAGES or self._nbytes + letter.nbytes > INBOX_BYTES:
            return False
        self._letters.append(letter)
        self._nbytes += letter.nbytes
        return True

    def take_all(self, kind: type[Message]) -> list[Letter]:
        """Those of one type, oldest first; the others stay."""
        found = [letter for letter in self._letters if isinstance(letter.message, kind)]
        if found:
            self._letters = deque(letter for letter in self._letters if not isinstance(letter.message, kind))
            self._nbytes -= sum(letter.nbytes for letter in found)
        return found

    def take(self) -> Letter:
        letter = self._letters.popleft()
        self._nbytes -= letter.nbytes
        return letter

    def keep(self, letter: Letter) -> None:
        """Set a letter that was taken aside; of very many the newest."""
        self._later.append(letter)

    def bring_back(self) -> None:
        """What was set aside is read next, in its order."""
        while self._later:
            letter = self._later.pop()
            self._letters.appendleft(letter)
            self._nbytes += letter.nbytes


class RouteInbox:
    """Keeps the messages of one open route.

    Attributes:
        messages: with the rank of each sender, oldest first; who reads them takes them out.
    """

    __slots__ = ("_ranks", "_room", "messages")

    def __init__(self, members: Mapping[int, str]) -> None:
        self.has_members(members)
        self.messages: deque[tuple[int, RouteMessage]] = deque()
        self._room = ROUTE_BYTES

    def has_members(self, members: Mapping[int, str]) -> None:
        """From now on these are the mailboxes of ranks; what comes from anybody else is dropped."""
        self._ranks = {address: rank for rank, address in members.items()}

    def file(self, sender: str, message: RouteMessage) -> None:
        rank = self._ranks.get(sender)
        if rank is None:
            return
        self._room -= len(message.payload)
        if self._room < 0 and not self._makes_room(message):
            logger.error("route %s: a message of rank %s is dropped: too much is unread", message.route, rank)
            return
        self.messages.append((rank, message))

    def _makes_room(self, message: RouteMessage) -> bool:
        """Count again what is unread: messages are taken out without saying so."""
        unread = sum(len(each.payload) for _, each in self.messages) + len(message.payload)
        self._room = ROUTE_BYTES - unread
        return self._room >= 0


class RouteInboxes:
    """Keeps the messages of a mailbox's open routes, by name, and a little of what has come for others."""

    def __init__(self) -> None:
        self._open: dict[str, RouteInbox] = {}
        self._early: deque[tuple[str, RouteMessage]] = deque()
        self._early_bytes = 0

    def open(self, route: str, members: Mapping[int, str]) -> deque[tuple[int, RouteMessage]]:
        """Where the messages of ``route`` are filed from now on, beginning with those that came early."""
        inbox = self._open.get(route)
        if inbox is not None:
            inbox.has_members(members)
            return inbox.messages
        inbox = self._open[route] = RouteInbox(members)
        for sender, message in self._early:
            if message.route == route:
                inbox.file(sender, message)
        self._early = deque(each for each in self._early if each[1].route != route)
        self._early_bytes = sum(_size(message) for _, message in self._early)
        return inbox.messages

    def close(self, route: str) -> None:
        self._open.pop(route, None)

    def file(self, sender: str, message: RouteMessage) -> None:
        inbox = self._open.get(message.route)
        if inbox is not None:
            inbox.file(sender, message)
            return
        self._early.append((sender, message))
        self._early_bytes += _size(message)
        while self._early_bytes > EARLY_BYTES:
            self._early_bytes -= _size(self._early.popleft()[1])


def _size(message: RouteMessage) -> int:
    """Of a message that is kept: its text, and some for the objects around it."""
    return len(message.payload) + len(message.route) + 400
