"""Ports for servers that are told theirs."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress

FIRST, LAST = 10_000, 31_000
"""Below those that a host gives to whoever asks for any: between this look and the server's, nobody is given them."""


def free_port(neighbours: int = 0) -> int:
    """One that nobody listens at, nor at so many after it."""
    for port in random.sample(range(FIRST, LAST - neighbours), 200):
        with ExitStack() as stack, suppress(OSError):
            for number in range(port, port + neighbours + 1):
                stack.enter_context(socket.socket()).bind(("", number))
            return port
    raise AssertionError("so many ports are not free")
