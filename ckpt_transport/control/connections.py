"""Connections to mailboxes share a socket or two, however many there are."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

import zmq

from ckpt_transport.control import addresses
from ckpt_transport.control.messages import MAX_FRAME
from ckpt_transport.control.security import Secret, turn_away_others
from ckpt_transport.errors import ControlError

LINGER_MS = 500
SEND_HIGH_WATER = 100_000
NOW = int(zmq.NOBLOCK)
MORE = NOW | int(zmq.SNDMORE)
"""Of ints, because combining pyzmq's enumerations takes longer than sending a frame."""

Socket = zmq.Socket[bytes]


def no_socket(error: zmq.ZMQError) -> ControlError:
    return ControlError(f"no socket can be had: {error}; let this process have more open files (ulimit -n 65536)")


def receive_all_frames(socket: Socket) -> list[bytes]:
    """The frames of the next message; raises ``zmq.Again`` where there is none.

    As pyzmq's ``recv_multipart``, which asks the socket after each frame whether there is more, and takes as long for
    that as for all the rest of a short message. Here the frame says so itself.
    """
    frames = []
    while True:
        frame = socket.recv(NOW, copy=False)
        frames.append(frame.bytes)
        if not frame.more:
            return frames


def end_torn(socket: Socket) -> None:
    """End the message that an interrupt has left half sent, so that the next one does not become a part of it.

    Whoever gets the half refuses it. A router drops the frame where no message was begun.
    """
    with contextlib.suppress(zmq.ZMQError):
        socket.send(b"", NOW)


class OutgoingConnections:
    """Opens connections, sends on each of them, and knows whose they are.

    A socket of ZeroMQ's type ROUTER carries any number of connections, and gives each a name of ours. One socket is for
    addresses that need the secret, and one for all others, because a socket presents it to everybody or to nobody.

    Args:
        context, secret: of the mailbox.

    Attributes:
        sockets: those that there are; whoever we are connected to may answer there.
    """

    def __init__(self, context: zmq.Context[Socket], secret: Secret | None) -> None:
        self._secret = secret
        self._plain, self._secured = self._socket(context), None
        if secret is not None:
            self._secured = self._socket(context)
            secret.present(self._secured)
        self.sockets = tuple(socket for socket in (self._plain, self._secured) if socket is not None)
        self._open: dict[str, tuple[Socket, bytes, str]] = {}
        """Of each address: the socket, what it calls the connection, and where that leads."""
        self._whose: dict[bytes, str] = {}
        self._is_ipv6: dict[Socket, bool] = {}
        self._names = itertools.count()

    @staticmethod
    def _socket(context: zmq.Context[Socket]) -> Socket:
        socket: Socket = context.socket(zmq.ROUTER)
        socket.router_mandatory = True
        turn_away_others(socket)
        socket.linger, socket.sndhwm, socket.maxmsgsize = LINGER_MS, SEND_HIGH_WATER, MAX_FRAME
        return socket

    def __contains__(self, address: str) -> bool:
        return address in self._open

    def __len__(self) -> int:
        return len(self._open)

    def connect(self, address: str) -> None:
        """Open a connection to the mailbox at ``address``, unless there is one.

        Raises:
            ControlError: there can be none: the address is no place to connect to, or descriptors have run out.
        """
        if address in self._open:
            return
        socket = self._secured if self._secured is not None and address.startswith("tcp") else self._plain
        name = b"to %d" % next(self._names)
        try:
            if (is_ipv6 := addresses.is_ipv6(address)) != self._is_ipv6.get(socket):
                socket.ipv6 = self._is_ipv6[socket] = is_ipv6
            socket.setsockopt(zmq.CONNECT_ROUTING_ID, name)
            socket.connect(address)
        except zmq.ZMQError as error:
            raise ControlError(f"cannot connect to {address}: {error}") from error
        self._open[address] = socket, name, socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._whose[name] = address

    def send(self, address: str, frames: Sequence[bytes]) -> None:
        """Send to who is connected; returns at once.

        Raises:
            ControlError: it has read nothing for hours, or refuses us.
        """
        socket, name, _ = self._open[address]
        try:
            self._send_all(socket, name, frames)
        except zmq.Again as error:
            raise ControlError(f"{address} has not read what was sent there before") from error
        except zmq.ZMQError as error:
            self.close_one(address)
            raise ControlError(f"{address} has ended the connection: {error}") from error

    @staticmethod
    def _send_all(socket: Socket, name: bytes, frames: Sequence[bytes]) -> None:
        try:
            socket.send(name, MORE)
            for frame in frames[:-1]:
                socket.send(frame, MORE)
            socket.send(frames[-1], NOW)
        except zmq.ZMQError:
            raise
        except BaseException:
            end_torn(socket)
            raise

    def sender(self, name: bytes) -> str | None:
        """The address to which the connection of that name leads; None when it was closed."""
        return self._whose.get(name)

    def close_one(self, address: str) -> None:
        """Close one connection when what was sent has gone, if there is one."""
        if address in self._open:
            socket, name, place = self._open.pop(address)
            del self._whose[name]
            socket.disconnect(place)

    def close(self) -> None:
        for socket in self.sockets:
            socket.close(LINGER_MS)
