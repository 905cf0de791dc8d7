"""A probe of what the host does for a bucket beside moving it: threads wake each other, and say something short."""

from __future__ import annotations

import socket
import threading

import msgspec

from ckpt_transport.rates.timing import fastest, seconds

ROUND_TRIPS = 5
"""So many are timed at once: so few that, on a busy machine, nothing else ran meanwhile in some repetitions."""
PER_BUCKET = 20
"""A bucket that goes through slots takes the host about as long as so many, as ``python -m benchmarks.control`` has it:
it is announced, posted, handed to a thread, waited for, given back and accounted for."""
LENGTH = 64
TIMEOUT_SECONDS = 5.0


def per_bucket() -> float:
    """Seconds that the host needs for one bucket.

    Raises:
        OSError: there are no sockets to use.
    """
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        here.settimeout(TIMEOUT_SECONDS)
        answering = threading.Thread(target=_answer, args=(there,), name="ckpt-transport-hand-over", daemon=True)
        answering.start()
        try:
            one = fastest(lambda: seconds(lambda: _ask(here))) / ROUND_TRIPS
        finally:
            here.shutdown(socket.SHUT_RDWR)
            answering.join(TIMEOUT_SECONDS)
    return PER_BUCKET * one


def _ask(channel: socket.socket) -> None:
    for number in range(ROUND_TRIPS):
        channel.send(msgspec.msgpack.encode((number, "ready")))
        msgspec.msgpack.decode(channel.recv(LENGTH))


def _answer(channel: socket.socket) -> None:
    while message := channel.recv(LENGTH):
        channel.send(msgspec.msgpack.encode(msgspec.msgpack.decode(message)))
