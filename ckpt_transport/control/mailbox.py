"""A mailbox is one participant's place on the control plane: a socket to listen on, and one to each peer."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self

import zmq

from ckpt_transport.control import addresses
from ckpt_transport.control.by_courier import ByCourier
from ckpt_transport.control.connections import LINGER_MS
from ckpt_transport.control.heart import Heart
from ckpt_transport.control.inbox import Inbox, Letter, RouteInboxes
from ckpt_transport.control.interruptions import Interruptions
from ckpt_transport.control.liveness import Liveness
from ckpt_transport.control.messages import MAX_REASON, Codec, Heartbeat, Message, Refused, RouteMessage
from ckpt_transport.control.security import Secret, check_secured
from ckpt_transport.control.sockets import Sockets
from ckpt_transport.control.unclosed import close_when_collected
from ckpt_transport.control.waker import Waker
from ckpt_transport.errors import ControlError

MAX_PARTING = 64
"""Connections that are being closed, each within :data:`LINGER_MS`, after one message to somebody we do not know."""


class _Reading(threading.local):
    """What each thread has received last."""

    letter: Letter | None = None


class Mailbox:
    """Receives every message addressed to this participant. Driven by one thread at a time; see also :meth:`borrowed`.

    Args:
        address: where to listen: ``ipc://PATH``, ``tcp://HOST:PORT``, ``tcp://HOST:0`` for any free port, or empty for
            a new address that only this user can reach. An IPv6 address stands in brackets: ``tcp://[::1]:0``.
        types: the messages understood here, besides the control plane's own.
        secret: needed for TCP.
        insecure: TCP over loopback may do without.
        interval: seconds between heartbeats to those who :meth:`watch` us.
        timeout: seconds without a sign of life after which a watched peer counts as lost.

    Attributes:
        address: where it listens.
        secret: that it uses.
        by_courier: how it talks to many, and answers one that does.

    Raises:
        ConfigError: the address is malformed, or open to others without a secret.
        ControlError: somebody else listens there.
    """

    def __init__(
        self,
        address: str = "",
        types: Sequence[type[Message]] = (),
        *,
        secret: Secret | None = None,
        insecure: bool = False,
        interval: float = 0.5,
        timeout: float = 5.0,
    ) -> None:
        self._insecure = insecure
        wanted = addresses.check(address or addresses.new_ipc_address())
        check_secured(wanted, secret, insecure)
        if addresses.is_taken(wanted):
            raise ControlError(
                f"cannot listen on {wanted}: somebody else does, or it is no socket; choose another address, or end "
                "who listens there"
            )
        self._codec = Codec(types)
        self._interval, self._timeout = interval, timeout
        self._waker, self._closed = Waker(), False
        self._parting: deque[float] = deque(maxlen=MAX_PARTING)
        self.interruptions = Interruptions()
        self._inbox = Inbox()
        self._routes = RouteInboxes()
        self._reading = _Reading()
        self._driving = threading.RLock()
        self._liveness = Liveness(timeout, lambda: self.pump(0))
        self.by_courier = ByCourier(self, self._codec, self._liveness, self._driving)
        self._news = False
        """Something was filed by a pump that did not wait, so whoever waits next should look first."""
        try:
            self._open(wanted, secret)
        except ControlError:
            self._waker.close()
            raise

    def _open(self, wanted: str, secret: Secret | None) -> None:
        self._sockets = Sockets(wanted, secret, self._codec, self._waker.descriptor)
        self.address, self.secret = self._sockets.address, secret
        self._heart = Heart(self._sockets, self._interval, self._timeout)
        self._unclosed = close_when_collected(self, self._heart.stop, self._sockets.close, self._waker.close)

    # -- messages -----------------------------------------------------------------------------------------------

    def check(self, address: str) -> None:
        """Whether something may be sent there; nothing is.

        Raises:
            ConfigError: the address is malformed, or open to others without a secret.
            ControlError: it belongs to another user.
        """
        check_secured(addresses.check(address), self.secret, self._insecure)
        addresses.check_owner(address)

    def send(self, address: str, message: Message) -> None:
        """Send to the mailbox at ``address``; returns at once. What is sent after :meth:`close` goes nowhere.

        Raises: as :meth:`check`, and
            ControlError: there is no way there.
            MessageError: the message is too large.
        """
        self.send_encoded(address, self.encode(message))

    def encode(self, message: Message) -> Sequence[bytes]:
        """A message as frames, for :meth:`send_encoded`: what goes to many is encoded once.

        Raises:
            MessageError: the message is too large.
        """
        return self._sockets.encode(message)

    def send_encoded(self, address: str, frames: Sequence[bytes]) -> None:
        """Send what :meth:`encode` has made, as :meth:`send` does."""
        with self._driving:
            if not self._sockets.closed:
                self._post(address, frames)

    def send_once(self, address: str, message: Message) -> None:
        """Send to somebody who is not known here: a new connection is closed as soon as the message has gone.

        Raises:
            ControlError: there is no way there, or many such messages are on their way already.
        """
        if self._sockets.is_connected(address):
            self.send(address, message)
            return
        now = time.monotonic()
        if len(self._parting) == MAX_PARTING and now - self._parting[0] < LINGER_MS / 1000:
            raise ControlError(f"{address} gets no answer: too many strangers are being answered")
        with self._driving:
            if self._sockets.closed:
                return
            self._parting.append(now)
            try:
                self._post(address, self.encode(message))
            finally:
                self._sockets.hang_up(address)

    def answer(self, message: Message) -> None:
        """Answer what :meth:`receive` has returned last to this thread, on the connection on which it came.

        Nothing is sent where that was one of our own connections, which carry answers already.
        """
        read = self._reading.letter
        if read is not None:
            self._answer(read, message)

    def believe(self) -> None:
        """What :meth:`receive` has returned last is from who it says: answers by courier go the way it came."""
        if self._reading.letter is not None:
            self.by_courier.believe(self._reading.letter)

    def refuse(self, reason: str, about: str = "") -> None:
        """Say that what :meth:`receive` has returned last is not acted on."""
        self.answer(Refused(reason[:MAX_REASON], about[:MAX_REASON]))

    def receive(self, timeout: float) -> tuple[str, Message] | None:
        """The next message and its sender's address, or None after ``timeout`` seconds.

        The address is the sender's own word, save in what comes back on a connection of our own.
        """
        deadline = time.monotonic() + timeout
        while True:
            with self._driving:
                if self._inbox:
                    read = self._reading.letter = self._inbox.take()
                    return read.sender, read.message
            left = deadline - time.monotonic()
            if not self.pump(max(left, 0)) and left <= 0:
                return None

    def keep_for_later(self) -> None:
        """Set aside what :meth:`receive` has returned last, until :meth:`bring_back`."""
        if self._reading.letter is not None:
            self._inbox.keep(self._reading.letter)

    def bring_back(self) -> None:
        """Have :meth:`receive` return again what was set aside, before all else."""
        self._inbox.bring_back()

    def pump(self, timeout: float) -> bool:
        """File what has arrived; wait up to ``timeout`` seconds when nothing has since the last wait.

        Signs of life end no wait: a coordinator hears many, and who waits has nothing to do about them.

        Returns: whether something had arrived; then there may be more.
        """
        self.interruptions.raise_here()
        with self._driving:
            if self._sockets.closed:
                time.sleep(timeout)
                return False
            self.by_courier.tend()
            if timeout <= 0:
                found = self._sockets.poll(0)
                self._news |= self._file_all(found)
                return bool(found)
            if self._news:
                self._file_all(self._sockets.poll(0))
                self._news = False
                return True
            deadline = time.monotonic() + timeout
            while True:
                found, woken = self._wait(timeout)
                if self._file_all(found) or woken:
                    return True
                timeout = deadline - time.monotonic()
                if timeout <= 0:
                    return False

    def _wait(self, timeout: float) -> tuple[list[zmq.Socket[bytes]], bool]:
        """What can be read, at the latest after ``timeout`` seconds; and whether somebody has woken this one."""
        woken = self._waker.begin()
        try:
            found = self._sockets.poll(0 if woken else math.ceil(timeout * 1000))
        finally:
            woken = self._waker.end()
        return found, woken

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """Drive this mailbox in place of its thread, which is stuck elsewhere and has to wait if it comes back."""
        with self._driving:
            yield

    def receive_all(self, kind: type[Message]) -> Iterator[Message]:
        """What has arrived of one type, oldest first; :meth:`answer` answers each before the next is taken."""
        for letter in self._inbox.take_all(kind):
            self._reading.letter = letter
            yield letter.message

    def unread(self) -> Iterator[tuple[str, Message]]:
        """What has arrived and was not received yet, oldest first; it stays there."""
        for letter in self._inbox:
            yield letter.sender, letter.message

    def interrupt(self, thread: int, error: BaseException) -> None:
        """Have ``error`` raised in that thread when it next waits here, from any thread."""
        self.interruptions.add(thread, error)
        self.wake()

    def wake(self) -> None:
        """End the wait of whoever is in :meth:`pump`, from any thread."""
        self._waker.wake()

    def _file_all(self, found: Sequence[zmq.Socket[bytes]]) -> bool:
        """File what sockets have got; whether any of it was more than a sign of life."""
        news = False
        for socket in found:
            for each in self._sockets.read(socket):
                self._liveness.hear(each.sender)
                if isinstance(each.message, Heartbeat):
                    self._liveness.look_at_file(each.sender)
                for letter in () if isinstance(each.message, Heartbeat) else self.by_courier.letters(each):
                    self._file(letter)
                    news |= not isinstance(letter.message, Heartbeat)
        return news

    def _file(self, letter: Letter) -> None:
        message = letter.message
        if isinstance(message, RouteMessage):
            self._routes.file(letter.sender, message)
        elif isinstance(message, Heartbeat) or (letter.connection and isinstance(message, Refused)):
            return
        elif not self._inbox.add(letter):
            self._answer(letter, Refused(f"too many messages wait at {self.address}"))

    def _post(self, address: str, frames: Sequence[bytes]) -> None:
        if not self._sockets.is_connected(address):
            self.check(address)
        self._sockets.post(address, frames)

    def _answer(self, letter: Letter, message: Message) -> None:
        if letter.by_courier:
            self.by_courier.answer_letter(letter, message)
        else:
            self.reply(letter.connection, message)

    def reply(self, connection: bytes, message: Message) -> None:
        """Answer on a connection on which something came; on none, nothing is sent."""
        with self._driving:
            if not self._sockets.closed:
                self._sockets.reply(connection, message)

    # -- routes -------------------------------------------------------------------------------------------------

    def open_route(self, route: str, members: Mapping[int, str]) -> deque[tuple[int, RouteMessage]]:
        """Where messages of ``route`` are filed from now on, oldest first, with senders' ranks; who reads takes them.

        Args:
            route: its name. Opening it again changes nothing but who its members are.
            members: rank to mailbox address; what anybody else sends is dropped.
        """
        return self._routes.open(route, members)

    def close_route(self, route: str) -> None:
        """Drop what has arrived for that route."""
        self._routes.close(route)

    # -- liveness -----------------------------------------------------------------------------------------------

    def watch(self, address: str) -> None:
        """Send heartbeats to ``address`` and expect its own from now on.

        Raises: as :meth:`check`.
        """
        if not self._sockets.is_connected(address):
            self.check(address)
        self._liveness.watch(address)
        self._heart.beat_to(address)

    def unwatch(self, address: str) -> None:
        self._liveness.unwatch(address)
        self._heart.stop_beating_to(address)

    def check_alive(self, watched: Iterable[str] | None = None) -> None:
        """Check the peers in ``watched`` (by default all that are watched).

        Raises:
            PeerLostError: one has been silent for too long; names it.
        """
        self._liveness.check(watched)

    def silence(self, since: float) -> float:
        """For how long we looked dead to those we watch since then, where that is longer than ``timeout``; else 0."""
        return self._heart.silence(since)

    def awake_for(self) -> float:
        """For how many seconds this process has gone on since it looked dead to others; infinite if it never did."""
        return self._heart.awake_for()

    # -- the end ------------------------------------------------------------------------------------------------

    def forget(self, address: str) -> None:
        """Close the connection to a peer that is not needed any more."""
        self.unwatch(address)
        with self._driving:
            self.by_courier.forget(address)
            if not self._sockets.closed:
                self._sockets.hang_up(address)

    def close(self) -> None:
        """Send what is queued, then close. Idempotent."""
        with self._driving:
            if not self._closed:
                self._hang_up()
                self._waker.close()
                self._closed = True

    def use(self, secret: Secret) -> None:
        """Take another secret: whoever has only the one before is cut off, and gets in no more.

        What has arrived stays, who is watched stays so, and peers with the new secret connect again by themselves.

        Raises:
            ControlError: somebody else has taken the address in that moment. Nothing is heard until a call succeeds.
        """
        with self._driving:
            if self._closed:
                return
            if not self._sockets.closed:
                self._hang_up()
            self._open(self.address, secret)
            self._heart.beat_anew_to(self._liveness.watched)

    def _hang_up(self) -> None:
        self._heart.stop()
        self._sockets.close()
        self._unclosed.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
