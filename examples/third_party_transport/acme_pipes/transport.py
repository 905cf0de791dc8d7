"""The ``acme-tcp`` transport: one TCP connection between every two members of a route."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import socket
import struct
import time

import msgspec
import torch

from ckpt_transport import RegistrationError, TransferTimeout, TransportError
from ckpt_transport.spi import (
    Availability,
    Buffer,
    Control,
    Descriptor,
    Endpoint,
    FanOut,
    Group,
    MemoryKind,
    MessageEndpoint,
    Poll,
    Reach,
    Traits,
    Transport,
)

from .pipe import Pipe

HELLO = struct.Struct("!Q16s")
"""What a member says first on a connection it has opened: its rank, and the token of the one it calls."""

HELLO_SECONDS = 1.0
"""How long a caller may take to say it."""


class Door(msgspec.Struct, frozen=True, array_like=True):
    """Where a member listens, and the token that lets others in. It travels on the control channel."""

    host: str
    port: int
    token: bytes


class AcmeTcpEndpoint(MessageEndpoint):
    """Sends and receives from and into any host memory; bytes travel in the clear."""

    def __init__(self, group: Group, control: Control, timeout: float) -> None:
        super().__init__(group, control)
        self._pipes: dict[int, Pipe] = {}
        with contextlib.ExitStack() as undo:
            undo.callback(self._shut)
            try:
                self._connect_all(time.monotonic() + timeout)
            except TransportError:
                raise
            except TimeoutError as error:
                raise TransferTimeout(f"route {group.route}: not all members connected in {timeout:g} s") from error
            except OSError as error:
                raise TransportError(f"route {group.route} could not be connected: {error}") from error
            undo.pop_all()

    def _describe(self, buffer: Buffer) -> Descriptor:
        if buffer.kind is MemoryKind.CUDA:
            raise RegistrationError("'acme-tcp' moves host memory only")
        return b""

    def _send_to(self, receiver: int, tag: tuple[int, int], tensor: torch.Tensor) -> Poll:
        pipe = self._pipes[receiver]
        frame = pipe.send(tag, tensor.numpy().data)

        def sent() -> bool:
            pipe.move()
            return frame.done

        return sent

    def _receive_from(self, sender: int, tag: tuple[int, int], tensor: torch.Tensor) -> Poll:
        pipe = self._pipes[sender]
        frame = pipe.expect(tag, tensor.numpy().data)

        def received() -> bool:
            pipe.move()
            return frame.done

        return received

    def _shut(self) -> None:
        for pipe in self._pipes.values():
            pipe.close()
        self._pipes.clear()

    def _connect_all(self, deadline: float) -> None:
        """Call the members before this one in the group, and answer those after it."""
        host = "127.0.0.1" if self.group.on_one_host else os.environ.get("ACME_TCP_HOST", socket.gethostname())
        token = secrets.token_bytes(16)
        with socket.create_server((host, 0), backlog=self.group.size) as listener:
            mine = msgspec.msgpack.encode(Door(host, listener.getsockname()[1], token))
            doors = self.control.exchange(mine, _left(deadline))
            for rank in self.group.ranks[: self.group.index]:
                self._call(rank, msgspec.msgpack.decode(doors[rank], type=Door), deadline)
            while len(self._pipes) < self.group.size - 1:
                listener.settimeout(_left(deadline))
                self._answer(listener.accept()[0], token)

    def _call(self, rank: int, door: Door, deadline: float) -> None:
        with contextlib.ExitStack() as undo:
            connection = undo.enter_context(socket.create_connection((door.host, door.port), _left(deadline)))
            connection.sendall(HELLO.pack(self.group.rank, door.token))
            self._pipes[rank] = Pipe(connection, rank)
            undo.pop_all()

    def _answer(self, connection: socket.socket, token: bytes) -> None:
        """Let a caller in that shows the token; send any other away."""
        with contextlib.ExitStack() as undo, contextlib.suppress(TimeoutError):
            undo.enter_context(connection)
            connection.settimeout(HELLO_SECONDS)
            said = b""
            while len(said) < HELLO.size and (data := connection.recv(HELLO.size - len(said))):
                said += data
            rank, shown = HELLO.unpack(said.ljust(HELLO.size, b"\0"))
            if rank in self.group.peers and rank not in self._pipes and hmac.compare_digest(shown, token):
                self._pipes[rank] = Pipe(connection, rank)
                undo.pop_all()


class AcmeTcpTransport(Transport):
    """Message transport over TCP between CPUs anywhere."""

    name = "acme-tcp"
    traits = Traits(
        reach=Reach.NETWORK,
        sends_from=frozenset({MemoryKind.PRIVATE, MemoryKind.SHARED}),
        maps_memory=False,
        fan_out=FanOut.LINEAR,
        bandwidth=1e9,
        latency=200e-6,
    )

    @classmethod
    def probe(cls) -> Availability:
        return Availability(True)

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        return AcmeTcpEndpoint(group, control, timeout)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
