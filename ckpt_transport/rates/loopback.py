"""A probe of TCP over loopback: one connection, a thread at each end."""

from __future__ import annotations

import socket
import threading

from ckpt_transport.rates.timing import fastest, seconds

PROBE_BYTES = 16 << 20
PIECE_BYTES = 1 << 20
TIMEOUT_SECONDS = 5.0
"""For one call of the kernel; on a machine that works, none takes a hundredth of that."""


def one_connection() -> float:
    """Bytes per second through one connection.

    Raises:
        OSError: there is no loopback to use.
    """
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname(), TIMEOUT_SECONDS) as sender,
    ):
        receiver, _ = listening.accept()
        with receiver:
            receiver.settimeout(TIMEOUT_SECONDS)
            return PROBE_BYTES / fastest(lambda: seconds(lambda: _send(sender, receiver)))


def _send(sender: socket.socket, receiver: socket.socket) -> None:
    """Send so many bytes, and return when they have arrived."""
    failures: list[OSError] = []

    def send() -> None:
        try:
            for _ in range(PROBE_BYTES // PIECE_BYTES):
                sender.sendall(piece)
        except OSError as error:
            failures.append(error)

    piece, into = bytes(PIECE_BYTES), bytearray(PIECE_BYTES)
    sending = threading.Thread(target=send, name="ckpt-transport-loopback", daemon=True)
    sending.start()
    missing = PROBE_BYTES
    while missing and (arrived := receiver.recv_into(into)):
        missing -= arrived
    sending.join()
    if failures:
        raise failures[0]
    if missing:
        raise OSError(f"a connection over loopback ended {missing:,} bytes early")
