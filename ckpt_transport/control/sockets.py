"""The sockets of a mailbox: one to listen on, and those of its connections to others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import zmq

from ckpt_transport.control.connections import LINGER_MS, OutgoingConnections, end_torn, no_socket, receive_all_frames
from ckpt_transport.control.inbox import Letter
from ckpt_transport.control.listening import ListeningSocket
from ckpt_transport.control.messages import MAX_FRAME, Codec, Message, Refused
from ckpt_transport.control.security import Secret
from ckpt_transport.errors import MessageError

AT_ONCE = 32
"""Messages of a socket that are filed before anything else is done: a peer may send faster than they are filed."""


class Sockets:
    """Sends messages, and reads what has arrived. Driven by one thread at a time.

    Args:
        wanted: where to listen, as :func:`~ckpt_transport.control.addresses.check` returns it.
        secret: needed for TCP.
        codec: turns messages into frames and back.
        waker: a descriptor that ends :meth:`poll`, too.

    Attributes:
        address: where they listen, with the port that it was given.
        file: of a UNIX socket, to be touched.
        secret: that they use.
        connections: to others.
        context: of the sockets that send.

    Raises:
        ControlError: somebody else listens there, or nobody can, or this process has too many open files.
    """

    def __init__(self, wanted: str, secret: Secret | None, codec: Codec, waker: int) -> None:
        self._codec, self.secret = codec, secret
        self._listening = ListeningSocket(wanted, secret)
        self._router, self.address = self._listening.socket, self._listening.address
        self.file = self._listening.file
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self.connections = OutgoingConnections(self.context, secret)
        except zmq.ZMQError as error:
            self._listening.close()
            self.context.destroy(0)
            raise no_socket(error) from error
        self._poller = zmq.Poller()
        for listening in (self._router, *self.connections.sockets, waker):
            self._poller.register(listening, zmq.POLLIN)

    @property
    def closed(self) -> bool:
        return self.context.closed

    def encode(self, message: Message) -> Sequence[bytes]:
        """A message as frames.

        Raises:
            MessageError: the message is too large.
        """
        frames = self._codec.frames(self.address, message)
        if len(frames[-1]) > MAX_FRAME:
            what = f"a message ({type(message).__name__}) has {len(frames[-1])} bytes"
            raise MessageError(f"{what}, and {MAX_FRAME} is the most there may be")
        return frames

    def sign_of_life(self) -> Sequence[bytes]:
        """The frames that say that this mailbox is there."""
        return self._codec.sign_of_life(self.address)

    def is_connected(self, address: str) -> bool:
        return address in self.connections

    def post(self, address: str, frames: Sequence[bytes]) -> None:
        """Send to an address, where a connection is opened if there is none; returns at once.

        Raises:
            ControlError: there is no way there.
        """
        self.connections.connect(address)
        self.connections.send(address, frames)

    def hang_up(self, address: str) -> None:
        """Close the connection to an address when what was sent has gone, if there is one."""
        self.connections.close_one(address)

    def reply(self, connection: bytes, message: Message) -> None:
        """Answer on the connection on which something came. Whoever has hung up misses it."""
        if not connection:
            return
        frames = [connection, *self._codec.frames(self.address, message)]
        with contextlib.suppress(zmq.ZMQError):
            try:
                self._router.send_multipart(frames, zmq.NOBLOCK)
            except zmq.ZMQError:
                raise
            except BaseException:
                end_torn(self._router)
                raise

    def poll(self, milliseconds: int) -> list[zmq.Socket[bytes]]:
        """Those that have got something, after waiting for it."""
        return [source for source, _ in self._poller.poll(milliseconds) if isinstance(source, zmq.Socket)]

    def read(self, socket: zmq.Socket[bytes]) -> Iterator[Letter]:
        """What one socket has got, of very much a part. What is no message is answered by a refusal, and comes as one
        where it came on a connection of our own."""
        for _ in range(AT_ONCE):
            try:
                frames = receive_all_frames(socket)
            except zmq.Again:
                return
            connection = frames.pop(0)
            peer = None
            if socket is not self._router:
                peer, connection = self.connections.sender(connection), b""
                if peer is None:  # it was closed meanwhile
                    continue
            try:
                sender, message = self._codec.parse(frames)
            except MessageError as error:
                refused = Refused(str(error))
                self.reply(connection, refused)
                if peer is not None:
                    yield Letter(peer, refused, b"", 0)
                continue
            yield Letter(sender if peer is None else peer, message, connection, len(frames[-1]))

    def close(self) -> None:
        """Send what is queued, then close."""
        self.connections.close()
        self._listening.close()
        self.context.destroy(LINGER_MS)
