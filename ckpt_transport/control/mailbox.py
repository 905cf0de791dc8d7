"""One participant's place on the control plane: a socket it listens on, and one to each peer it talks to."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Self

import zmq

from ckpt_transport.control import addresses
from ckpt_transport.control.heart import Heart
from ckpt_transport.control.messages import Codec, Heartbeat, Message, Refused, RouteMessage
from ckpt_transport.control.security import Secret
from ckpt_transport.errors import ConfigError, ControlError, MessageError, PeerLostError

LINGER_MS = 500
NOW = int(zmq.NOBLOCK)
MORE = NOW | int(zmq.SNDMORE)
"""Of ints, because combining pyzmq's enumerations takes longer than sending a frame."""
AT_ONCE = 32
"""Messages of a socket that are filed before anything else is done: a peer may send faster than they are filed."""
LOOKS = 100
"""How often somebody's sign of life is looked for behind what others send: sockets take turns among their peers."""


class Mailbox:
    """Receives every message addressed to this participant. Driven by one thread at a time.

    Args:
        address: where to listen: ``ipc://PATH``, ``tcp://HOST:PORT``, ``tcp://HOST:0`` for any free port, or empty for
            a new address that only this user can reach. An IPv6 address stands in brackets: ``tcp://[::1]:0``.
        types: the messages understood here, besides the control plane's own.
        secret: needed as soon as the address can be reached from another host.
        interval: seconds between heartbeats to those who :meth:`watch` us.
        timeout: seconds without a sign of life after which a watched peer counts as lost.

    Raises:
        ConfigError: the address is malformed, or open to the network without a secret.
        ControlError: somebody else listens there.
    """

    def __init__(
        self,
        address: str = "",
        types: Sequence[type[Message]] = (),
        *,
        secret: Secret | None = None,
        interval: float = 0.5,
        timeout: float = 5.0,
    ) -> None:
        wanted = addresses.check(address or addresses.new_ipc_address())
        if not addresses.stays_on_host(wanted) and secret is None:
            raise ConfigError(
                f"{wanted} can be reached from other hosts; give all participants the same secret_file, "
                "or listen on ipc:// or tcp://127.0.0.1"
            )
        if addresses.is_taken(wanted):
            raise ControlError(f"cannot listen on {wanted}: somebody else does, or it is no socket")
        self._codec = Codec(types)
        self._secret = secret
        self._timeout = timeout
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._authenticator = secret.authenticator(self._context) if secret is not None else None
        self._router: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        if secret is not None and wanted.startswith("tcp"):
            secret.guard(self._router)
        self._router.ipv6 = addresses.is_ipv6(wanted)
        try:
            self._router.bind(wanted)
        except zmq.ZMQError as error:
            self._stop_context()
            raise ControlError(f"cannot listen on {wanted}: {error}") from error
        self.address: str = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._dealers: dict[str, zmq.Socket[bytes]] = {}
        self._poller = zmq.Poller()
        self._poller.register(self._router, zmq.POLLIN)
        self._woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._waker: int | None = waker
        self._waking = threading.Lock()
        self._poller.register(self._woken, zmq.POLLIN)
        self._inbox: deque[tuple[str, Message]] = deque()
        self._routes: defaultdict[str, deque[RouteMessage]] = defaultdict(deque)
        self._closed_routes: set[str] = set()
        self._heard: dict[str, float] = {}
        self._news = False
        """Something was filed by a pump that did not wait, so whoever waits next should look first."""
        self._heart = Heart(self._context, secret, self._codec.frames(self.address, Heartbeat()), interval, timeout)

    # -- messages -----------------------------------------------------------------------------------------------

    def send(self, address: str, message: Message) -> None:
        """Send to the mailbox at ``address``; returns at once."""
        dealer = self._dealer(address)
        *first, last = self._codec.frames(self.address, message)
        for frame in first:
            dealer.send(frame, MORE)
        dealer.send(last, NOW)

    def receive(self, timeout: float) -> tuple[str, Message] | None:
        """The next message and its sender's address, or None after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while not self._inbox:
            left = deadline - time.monotonic()
            if not self.pump(max(left, 0)) and left <= 0:
                break
        return self._inbox.popleft() if self._inbox else None

    def pump(self, timeout: float) -> bool:
        """File what has arrived; wait up to ``timeout`` seconds when nothing has since the last wait.

        Returns: whether something had arrived; then there may be more.
        """
        waits = timeout > 0
        found = self._poller.poll(0 if self._news else math.ceil(timeout * 1000))
        self._news = (self._news or bool(found)) and not waits
        for source, _ in found:
            if isinstance(source, zmq.Socket):
                self._drain(source)
            else:
                os.read(self._woken, 4096)
        return bool(found)

    def wake(self) -> None:
        """End the wait of whoever is in :meth:`pump`, from any thread."""
        with self._waking, contextlib.suppress(BlockingIOError):
            if self._waker is not None:
                os.write(self._waker, b"!")

    def _drain(self, socket: zmq.Socket[bytes]) -> None:
        for _ in range(AT_ONCE):
            try:
                frames = socket.recv_multipart(NOW)
            except zmq.Again:
                return
            identity = [frames.pop(0)] if socket is self._router else []
            try:
                self._file(*self._codec.parse(frames))
            except MessageError as error:
                if identity:
                    answer = self._codec.frames(self.address, Refused(str(error)))
                    socket.send_multipart([*identity, *answer], zmq.NOBLOCK)
                else:
                    self._inbox.append((socket.getsockopt_string(zmq.LAST_ENDPOINT), Refused(str(error))))

    def _file(self, sender: str, message: Message) -> None:
        if sender in self._heard:
            self._heard[sender] = time.monotonic()
        if isinstance(message, RouteMessage):
            if message.route not in self._closed_routes:
                self._routes[message.route].append(message)
        elif not isinstance(message, Heartbeat):
            self._inbox.append((sender, message))

    def _dealer(self, address: str) -> zmq.Socket[bytes]:
        if address not in self._dealers:
            dealer = self._heart.connect(addresses.check(address))
            self._poller.register(dealer, zmq.POLLIN)
            self._dealers[address] = dealer
        return self._dealers[address]

    # -- routes -------------------------------------------------------------------------------------------------

    def route_messages(self, route: str) -> deque[RouteMessage]:
        """What has arrived for one route, oldest first."""
        return self._routes[route]

    def close_route(self, route: str) -> None:
        """Drop what has arrived and will arrive for that route."""
        self._routes.pop(route, None)
        self._closed_routes.add(route)

    # -- liveness -----------------------------------------------------------------------------------------------

    def watch(self, address: str) -> None:
        """Send heartbeats to ``address`` and expect its own from now on."""
        self._heard[address] = time.monotonic()
        self._heart.beat_to(address)

    def unwatch(self, address: str) -> None:
        self._heard.pop(address, None)
        self._heart.stop_beating_to(address)

    def check_alive(self, watched: Iterable[str] | None = None) -> None:
        """Check the peers in ``watched`` (by default all that are watched).

        Raises:
            PeerLostError: one has been silent for too long; names it.
        """
        oldest = time.monotonic() - self._timeout
        for address in self._heard if watched is None else watched:
            looks = 0
            while self._heard.get(address, oldest) < oldest and looks < LOOKS and self.pump(0):
                looks += 1
            if self._heard.get(address, oldest) < oldest:
                raise PeerLostError(f"no sign of life from {address} for {self._timeout:g} s")

    def silence(self, since: float) -> float:
        """For how long we looked dead to those we watch since then, where that is longer than ``timeout``; else 0."""
        return self._heart.silence(since)

    # -- the end ------------------------------------------------------------------------------------------------

    def forget(self, address: str) -> None:
        """Close the connection to a peer that is not needed any more."""
        self.unwatch(address)
        dealer = self._dealers.pop(address, None)
        if dealer is not None:
            self._poller.unregister(dealer)
            dealer.close(LINGER_MS)

    def close(self) -> None:
        """Send what is queued, then close. Idempotent."""
        if self._context.closed:
            return
        self._heart.stop()
        for dealer in self._dealers.values():
            dealer.close(LINGER_MS)
        self._router.close(LINGER_MS)
        self._stop_context()
        addresses.remove(self.address)
        with self._waking:
            waker, self._waker = self._waker, None
        for pipe_end in (self._woken, waker):
            if pipe_end is not None:
                os.close(pipe_end)

    def _stop_context(self) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(LINGER_MS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
