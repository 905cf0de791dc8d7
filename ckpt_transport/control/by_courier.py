"""A mailbox talks to many by couriers, is one for others, and answers by the one that has brought something."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from ckpt_transport.control.courier import Courier
from ckpt_transport.control.couriers import LARGE_BYTES, Couriers, Encoded
from ckpt_transport.control.inbox import Letter
from ckpt_transport.control.liveness import Liveness
from ckpt_transport.control.messages import Codec, Delivery, Dispatch, Heartbeat, Message, Refused
from ckpt_transport.errors import MessageError

logger = logging.getLogger(__name__)


class Sending(Protocol):
    """What a mailbox does for this."""

    @property
    def address(self) -> str: ...

    def encode(self, message: Message) -> Sequence[bytes]: ...

    def send(self, address: str, message: Message) -> None: ...

    def send_encoded(self, address: str, frames: Sequence[bytes]) -> None: ...

    def reply(self, connection: bytes, message: Message) -> None: ...


class ByCourier:
    """What goes by couriers, and comes by them. Everything else goes straight, as does what has no courier.

    A member that stops reading keeps what is for those behind it. So couriers are for what all have to do together,
    where nobody goes on without that member anyway; the end of an update is said to each straight.

    Args:
        mailbox: whose it is.
        codec: of its messages.
        liveness: whom it watches.
        driving: is held by who drives the mailbox.
    """

    def __init__(self, mailbox: Sending, codec: Codec, liveness: Liveness, driving: threading.RLock) -> None:
        self._mailbox, self._codec, self._liveness, self._driving = mailbox, codec, liveness, driving
        self._couriers = Couriers(mailbox.encode)
        self._courier = Courier(mailbox.send, self._bring_by)
        self._ways: dict[str, bytes] = {}
        """Of those whose words a courier brings: the connection to it, on which answers go; empty where it is this
        mailbox itself."""

    # -- of who talks to many -----------------------------------------------------------------------------------

    def plan(self, groups: Iterable[Sequence[str]]) -> None:
        """Have the first of each group, all of them watched, be the courier of all of it, from the next call on.

        A courier that brings no answer from somebody by then is not used for that one.
        """
        for courier, addresses in self._couriers.plan(groups).items():
            body = self._mailbox.encode(Heartbeat())[-1]
            self._mailbox.send(courier, Dispatch(((tuple(addresses), body),), answered=True))

    def tell_each(self, messages: Iterable[tuple[str, Encoded]]) -> None:
        """Send each its message. What several get in the same frames travels to a courier once.

        Raises: as :meth:`~ckpt_transport.control.Mailbox.send`.
        """
        self._send(self._couriers.sort(messages, answered=False))

    def ask_each(self, messages: Iterable[tuple[str, Encoded]]) -> None:
        """The same where all of them answer, and whoever asks waits for all."""
        self._send(self._couriers.sort(messages, answered=True))

    def _send(self, sorted_: Iterable[tuple[str, Encoded | Dispatch]]) -> None:
        for address, what in sorted_:
            if isinstance(what, Dispatch):
                self._mailbox.send(address, what)
            else:
                self._mailbox.send_encoded(address, what)

    # -- of who is talked to ------------------------------------------------------------------------------------

    def believe(self, letter: Letter) -> None:
        """A letter is from who it says: what that one is answered goes the way on which it came."""
        if letter.by_courier:
            self._ways[letter.sender] = letter.connection
        else:
            self._ways.pop(letter.sender, None)

    def answer(self, address: str, message: Message) -> None:
        """Answer what has come from there, on the way on which it came when it was last believed."""
        self._bring(address, self._mailbox.encode(message), self._ways.get(address), answers=True)

    def mention(self, address: str, frames: Encoded) -> None:
        """Say something there that can wait for a moment, for instance until something is answered."""
        way = None if len(frames[-1]) > LARGE_BYTES else self._ways.get(address)
        self._bring(address, frames, way, answers=False)

    def answer_letter(self, letter: Letter, message: Message) -> None:
        """Answer what a courier has brought."""
        self._bring(letter.sender, self._mailbox.encode(message), letter.connection, answers=True)

    def _bring_by(self, way: bytes, address: str, message: Message, answers: bool) -> None:
        """Have the courier on a connection bring what others have said to this one, which is a courier, too."""
        self._mailbox.reply(way, Dispatch((((address,), self._mailbox.encode(message)[-1]),), answers))

    def _bring(self, address: str, frames: Encoded, way: bytes | None, *, answers: bool) -> None:
        with self._driving:
            if way is None:
                self._mailbox.send_encoded(address, frames)
            elif way:
                self._mailbox.reply(way, Dispatch((((address,), frames[-1]),), answers))
            else:
                self._courier.hold(address, self._mailbox.address, frames[-1], answers=answers)

    # -- what comes ---------------------------------------------------------------------------------------------

    def letters(self, letter: Letter) -> Iterator[Letter]:
        """What a letter holds for this mailbox: itself, or what a courier has brought; what is for others goes on."""
        match letter.message:
            case Dispatch(parts=parts, answered=answered):
                if not letter.connection:  # it comes back from where this mailbox has handed something on
                    for addresses, body in parts:
                        for address in addresses:
                            self._courier.hold(address, letter.sender, body, answers=answered)
                elif letter.sender in self._liveness:
                    yield from self._handed_on(letter.sender, letter.message, b"")
            case Delivery(parts=parts):
                for senders, body in parts:
                    if near := self._couriers.near.brought(letter.sender, senders):
                        yield from self._brought_back(letter.sender, near, body)
                    elif far := self._couriers.far.brought(letter.sender, senders):
                        yield from self._brought_from_far(letter.sender, far[0], body)
                    else:
                        for sender in senders:
                            if sender in self._liveness:
                                yield from self._brought(sender, body, letter.connection)
            case _:
                yield letter

    def _handed_on(self, sender: str, dispatch: Dispatch, way: bytes) -> Iterator[Letter]:
        """Tell others what somebody who is watched has for them; what is for this one is returned."""
        for body in self._courier.hand_on(sender, dispatch, self._mailbox.address, way):
            yield from self._brought(sender, body, b"")

    def _brought(self, sender: str, body: bytes, way: bytes) -> Iterator[Letter]:
        """What somebody who is watched has sent here by a courier, or by this one where the way is empty."""
        try:
            letter = Letter(sender, self._codec.decode(body), way, len(body), by_courier=True)
        except MessageError as error:
            refused = Refused(str(error))
            self.answer_letter(Letter(sender, refused, way, 0, by_courier=True), refused)
            return
        match letter.message:
            case Heartbeat():
                self.answer_letter(letter, letter.message)
            case Dispatch() if way:
                yield from self._handed_on(sender, letter.message, way)
            case Dispatch() | Delivery():  # nobody has couriers of couriers of couriers
                return
            case _:
                yield letter

    def _brought_back(self, courier: str, senders: Sequence[str], body: bytes) -> Iterator[Letter]:
        """What some of those that are talked to have answered: the same words, which are read once."""
        self._couriers.near.saw(courier, senders)
        message = self._readable(courier, senders, body)
        if message is not None:
            for sender in senders:
                yield Letter(sender, message, b"", len(body))

    def _brought_from_far(self, over: str, courier: str, body: bytes) -> Iterator[Letter]:
        """What a courier has said to the courier of couriers over it: mostly what those behind it have answered."""
        self._couriers.far.saw(over, [courier])
        message = self._readable(over, [courier], body)
        if isinstance(message, Delivery):
            for senders, words in message.parts:
                if near := self._couriers.near.brought(courier, senders):
                    yield from self._brought_back(courier, near, words)
        elif message is not None:
            yield Letter(courier, message, b"", len(body))

    def _readable(self, courier: str, senders: Sequence[str], body: bytes) -> Message | None:
        try:
            return self._codec.decode(body)
        except MessageError as error:
            logger.error("%s brings something of %s that is no message: %s", courier, ", ".join(senders), error)
            return None

    def tend(self) -> None:
        """Bring back what was held for long enough."""
        self._courier.tend()

    def forget(self, address: str) -> None:
        """That one is not talked to any more."""
        self._couriers.forget(address)
        self._courier.forget(address)
        self._ways.pop(address, None)
