"""What the server, its workers and its clients say to each other: JSON, one type per message."""

from __future__ import annotations

import select
import socket

import msgspec

LONGEST_LINE = 1 << 20


class Generate(msgspec.Struct, frozen=True, tag=True):
    """Continue a prompt, greedily."""

    prompt: tuple[int, ...]
    max_tokens: int = 16


class Generated(msgspec.Struct, frozen=True, tag=True):
    """An answer.

    Attributes:
        tokens: the new tokens.
        version: that computed the last token.
        versions: that computed each token; more than one when an update came in between.
        slowest_token: the longest that a token was waited for, in seconds.
    """

    tokens: tuple[int, ...]
    version: str
    versions: tuple[str, ...]
    slowest_token: float


class Compare(msgspec.Struct, frozen=True, tag=True):
    """Compare every parameter with a checkpoint, bit by bit."""

    directory: str


class Compared(msgspec.Struct, frozen=True, tag=True):
    """What one worker found: how many elements of how many parameters it compared, and those that differ."""

    rank: int
    parameters: int
    elements: int
    mismatches: dict[str, int]


class Inspect(msgspec.Struct, frozen=True, tag=True):
    """Say which version is served, with how many parameters."""


class Inspected(msgspec.Struct, frozen=True, tag=True):
    """What one worker serves."""

    rank: int
    version: str
    parameters: int
    elements: int
    nbytes: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End the worker."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """A worker serves; sent once.

    Attributes:
        address: where it can be invited to updates.
    """

    address: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The request could not be served."""

    error: str


class Serving(msgspec.Struct, frozen=True):
    """What the server prints when it serves: its port, and the workers' addresses for updates and process ids."""

    port: int
    sinks: tuple[str, ...]
    processes: tuple[int, ...]


class Health(msgspec.Struct, frozen=True):
    """Whether all workers are alive."""

    healthy: bool
    error: str = ""


Request = Generate | Compare | Inspect | Stop
Reply = Generated | Compared | Inspected | Failed


class Numbered(msgspec.Struct, frozen=True):
    """A request on its way to the workers."""

    number: int
    request: Request


class Answered(msgspec.Struct, frozen=True):
    """The replies to the request of that number, by rank; of a generation, one."""

    number: int
    replies: tuple[Reply, ...]


encode = msgspec.json.Encoder().encode


class ChannelClosed(ConnectionError):
    """The process at the other end is gone."""


class Channel:
    """Lines of JSON over a connected socket. One thread may send while another receives."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._received = b""

    def send(self, message: object) -> None:
        """
        Raises:
            ChannelClosed: nobody reads any more.
        """
        try:
            self.socket.sendall(encode(message) + b"\n")
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed("the other process is gone") from error

    def receive(self, timeout: float) -> bytes | None:
        """The next line, or None when none came in ``timeout`` seconds.

        Raises:
            ChannelClosed: nobody writes any more.
        """
        while b"\n" not in self._received:
            if not select.select([self.socket], [], [], timeout)[0]:
                return None
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise ChannelClosed("the other process is gone")
            self._received += data
            if len(self._received) > LONGEST_LINE:
                raise ChannelClosed(f"the other process sent a line of more than {LONGEST_LINE} bytes")
        line, self._received = self._received.split(b"\n", 1)
        return line
