"""Matched messages over UNIX stream sockets: one connection between any two ranks, driven by whoever polls."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from ckpt_transport.errors import PeerLostError, TransferError, TransferTimeout
from ckpt_transport.memory import MemoryKind
from ckpt_transport.transports import MessageEndpoint, Poll
from ckpt_transport.transports.interface import Availability, Control, Endpoint, FanOut, Group, Reach, Traits, Transport

Tag = tuple[int, int]
HEADER = struct.Struct("!qqq")
"""Seq, span index and length of the message that follows."""


@dataclass(eq=False)
class Message:
    """A send or a posted receive: how much of its bytes has moved."""

    tag: Tag
    view: memoryview
    moved: int = 0

    @property
    def complete(self) -> bool:
        return self.moved == len(self.view)


class Wire:
    """The connection to one peer."""

    def __init__(self, peer: int, connection: socket.socket) -> None:
        self.peer, self.connection = peer, connection
        connection.setblocking(False)
        self.sends: deque[Message] = deque()
        self.receives: dict[Tag, Message] = {}
        self._header = bytearray()
        self._arriving: Message | None = None

    def progress(self) -> None:
        """Move what can be moved now.

        Raises:
            PeerLostError: the other end is closed.
            TransferError: a message of another length than the posted receive has come.
        """
        try:
            with contextlib.suppress(BlockingIOError):
                while self.sends:
                    self._push(self.sends[0])
            with contextlib.suppress(BlockingIOError):
                while self.receives and self._pull():
                    pass
        except ConnectionError as error:
            raise self._lost() from error

    def _push(self, message: Message) -> None:
        message.moved += self.connection.send(message.view[message.moved :])
        if message.complete:
            self.sends.popleft()

    def _pull(self) -> bool:
        """Read a piece; False when the next message has no receive yet, so that it stays in the socket."""
        if self._arriving is None:
            self._header += self._read(HEADER.size - len(self._header))
            if len(self._header) < HEADER.size:
                return True
            seq, index, nbytes = HEADER.unpack(self._header)
            message = self._match((seq, index))
            if message is None:
                return False
            if nbytes != len(message.view):
                raise TransferError(f"rank {self.peer} sends {nbytes} bytes for a receive of {len(message.view)}")
            self._arriving = message
            self._header.clear()
        arriving = self._arriving
        got = self.connection.recv_into(arriving.view[arriving.moved :])
        if not got:
            raise self._lost()
        arriving.moved += got
        if arriving.complete:
            self.receives.pop(arriving.tag)
            self._arriving = None
        return True

    def _match(self, tag: Tag) -> Message | None:
        return self.receives.get(tag)

    def _read(self, nbytes: int) -> bytes:
        if not nbytes:
            return b""
        got = self.connection.recv(nbytes)
        if not got:
            raise self._lost()
        return got

    def _lost(self) -> PeerLostError:
        return PeerLostError(f"the connection to rank {self.peer} is closed")


def _connected(path: str, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


class SocketEndpoint(MessageEndpoint):
    """A send may be overwritten once the kernel has a copy of all of it."""

    wire_type: ClassVar[type[Wire]] = Wire

    def __init__(self, group: Group, control: Control, timeout: float) -> None:
        super().__init__(group, control)
        self._wires: dict[int, Wire] = {}
        self._meet(time.monotonic() + timeout, timeout)

    def _meet(self, end: float, timeout: float) -> None:
        """Every rank listens; the higher one of each pair connects, and says who it is."""
        with tempfile.TemporaryDirectory(prefix="ckpt-transport-") as folder:
            path = os.path.join(folder, secrets.token_hex(4))
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen(self.group.size)
                self._wire_up(listener, path, _connected, end, timeout)

    def _wire_up(
        self,
        listener: socket.socket,
        here: str,
        connect: Callable[[str, float], socket.socket],
        end: float,
        timeout: float,
    ) -> None:
        """Connect to all lower ranks, by the words that they say for where they listen, and accept all higher ones."""
        there = self.control.exchange(here.encode(), timeout)
        for peer in self.group.ranks[: self.group.index]:
            connection = connect(there[peer].decode(), timeout)
            connection.sendall(self.group.rank.to_bytes(8, "big"))
            self._wires[peer] = self.wire_type(peer, connection)
        while len(self._wires) < self.group.size - 1:
            listener.settimeout(max(end - time.monotonic(), 0.001))
            try:
                connection, _ = listener.accept()
            except TimeoutError as error:
                raise TransferTimeout(f"route {self.group.route}: not everybody connected in time") from error
            peer = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big")
            self._wires[peer] = self.wire_type(peer, connection)
        self.control.exchange(b"", timeout)

    def _send_to(self, receiver: int, tag: Tag, tensor: torch.Tensor) -> Poll:
        wire = self._wires[receiver]
        header = Message(tag, memoryview(HEADER.pack(*tag, tensor.numel())))
        body = Message(tag, tensor.numpy().data)
        wire.sends += (header, body)
        return self._until_complete(wire, body)

    def _receive_from(self, sender: int, tag: Tag, tensor: torch.Tensor) -> Poll:
        wire = self._wires[sender]
        message = Message(tag, tensor.numpy().data)
        wire.receives[tag] = message
        return self._until_complete(wire, message)

    def _until_complete(self, wire: Wire, message: Message) -> Poll:
        def moved() -> bool:
            if not message.complete:
                wire.progress()
            return message.complete

        return moved

    def _shut(self) -> None:
        for wire in self._wires.values():
            wire.connection.close()
        self._wires.clear()


class SocketTransport(Transport):
    """Message transport between processes of one host."""

    name = "unix-sockets"
    traits = Traits(
        reach=Reach.HOST,
        sends_from=frozenset({MemoryKind.PRIVATE, MemoryKind.SHARED}),
        maps_memory=False,
        fan_out=FanOut.LINEAR,
        bandwidth=2e9,
        latency=100e-6,
    )
    endpoint_type: ClassVar[type[SocketEndpoint]] = SocketEndpoint

    @classmethod
    def probe(cls) -> Availability:
        return Availability(hasattr(socket, "AF_UNIX"), "this system has no UNIX sockets")

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        return self.endpoint_type(group, control, timeout)
