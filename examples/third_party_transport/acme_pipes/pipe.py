"""One connection to one peer: frames out of memory on one side, into memory on the other, without waiting."""

from __future__ import annotations

import socket
import struct
from collections import deque

from ckpt_transport import PeerLostError, TransferError

Tag = tuple[int, int]

HEADER = struct.Struct("!QQQ")
"""In front of every frame: the two numbers of its tag, and how many bytes follow."""


class Frame:
    """A message on its way: ``data`` is the memory that its bytes leave from, or arrive in."""

    def __init__(self, tag: Tag, data: memoryview) -> None:
        self.tag, self.data = tag, data
        self.done = False


class Pipe:
    """A non-blocking socket to ``peer``. One thread drives it.

    Bytes are taken from the socket only once there is memory that expects them: until then they wait in the buffers
    of the kernel, and at last in the sender's memory. That is all the back-pressure there is.
    """

    def __init__(self, connection: socket.socket, peer: int) -> None:
        self._socket, self._peer = connection, peer
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._leaving: deque[tuple[memoryview, Frame | None]] = deque()
        self._expected: deque[Frame] = deque()
        self._header = bytearray(HEADER.size)
        self._target = memoryview(self._header)
        self._arriving: Frame | None = None

    def send(self, tag: Tag, data: memoryview) -> Frame:
        """Queue a frame; done when its memory may be overwritten."""
        frame = Frame(tag, data)
        self._leaving.append((memoryview(HEADER.pack(*tag, len(data))), None))
        self._leaving.append((data, frame))
        return frame

    def expect(self, tag: Tag, data: memoryview) -> Frame:
        """Name the memory for the next frame; done when its bytes are there."""
        frame = Frame(tag, data)
        self._expected.append(frame)
        return frame

    def move(self) -> None:
        """Move as many bytes as the socket takes and gives now.

        Raises:
            PeerLostError: the peer is gone while something is on its way.
            TransferError: the peer has sent another frame than the one that is expected.
        """
        try:
            while self._leaving and self._push():
                pass
            while self._expected and self._pull():
                pass
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise PeerLostError(f"the connection to rank {self._peer} is gone: {error.strerror}") from error

    def close(self) -> None:
        """Close the socket. What was queued and not sent is dropped."""
        self._socket.close()

    def _push(self) -> bool:
        """Send one piece; False when the socket takes no more now."""
        data, frame = self._leaving[0]
        try:
            count = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            return False
        if count < len(data):
            self._leaving[0] = data[count:], frame
        else:
            self._leaving.popleft()
            if frame is not None:
                frame.done = True
        return True

    def _pull(self) -> bool:
        """Receive one piece of a header or of a frame; False when nothing has come."""
        count = self._socket.recv_into(self._target)
        if count == 0:
            raise PeerLostError(f"rank {self._peer} has closed its connection")
        self._target = self._target[count:]
        if not self._target:
            self._turn_over()
        return True

    def _turn_over(self) -> None:
        """A header, or a frame, is complete: what comes next is the other of the two."""
        if self._arriving is not None:
            self._arriving.done = True
            self._arriving = None
            self._expected.popleft()
            self._target = memoryview(self._header)
            return
        first, second, nbytes = HEADER.unpack(self._header)
        frame = self._expected[0]
        if ((first, second), nbytes) != (frame.tag, len(frame.data)):
            raise TransferError(
                f"rank {self._peer} sends {nbytes} bytes as message {(first, second)}, "
                f"and {len(frame.data)} bytes are expected as message {frame.tag}"
            )
        self._arriving, self._target = frame, frame.data
