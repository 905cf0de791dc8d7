"""What a check does with a transport: open a route, send known bytes, look at them without the code under test.

The bytes are written and compared with torch alone. The only place that asks whether a transport maps memory is
:meth:`Lane.post`, which gives the receiver a region where it needs one.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

import msgspec
import torch

from ckpt_transport.errors import TransportError
from ckpt_transport.memory import Buffer
from ckpt_transport.testing.context import RankContext
from ckpt_transport.transport import Completion, Endpoint, Group, MemoryRegion, Receipt, Span, Transfer, Transport

PATIENCE = 0.7
"""Which part of a check's deadline a rank waits before it says what it was waiting for."""
POLLS = 100
"""How often something that must not happen is given the chance to."""
UNTOUCHED = 0xA5
"""What a receiver's memory holds before anything arrives."""
FAILED = "failed"


class Broken(AssertionError):
    """This rank saw a promise broken."""


class Abandoned(Exception):
    """Another rank has stopped; this one has nothing to say."""


class Aside:
    """Words between the ranks of a check, past the transport under test."""

    def __init__(self, context: RankContext, end: float) -> None:
        self.rank = context.rank
        self.end = end
        self._context = context
        self._group = context.group("aside")
        self._control = context.control(self._group)
        self._heard: defaultdict[tuple[int, str], list[bytes]] = defaultdict(list)
        self._meetings = 0

    def tell(self, word: str, *ranks: int, payload: bytes = b"") -> None:
        """Say ``word`` to these ranks (to everybody else by default)."""
        for rank in ranks or self._group.peers:
            self._control.send(rank, msgspec.msgpack.encode((word, payload)))

    def heard(self, word: str, rank: int) -> bool:
        """Whether ``rank`` has said it; true once for each time it has."""
        self.listen()
        said = self._heard[rank, word]
        if said:
            said.pop(0)
        return bool(said) or (rank, word) in self._take(rank, word, said)

    def _take(self, rank: int, word: str, said: list[bytes]) -> set[tuple[int, str]]:
        raise NotImplementedError

    def listen(self, seconds: float = 0.0) -> None:
        """Take in what has been said.

        Raises:
            Abandoned: another rank has failed.
        """
        self._context.mailbox.pump(seconds)
        while (message := self._control.receive()) is not None:
            rank, said = message
            word, payload = msgspec.msgpack.decode(said, type=tuple[str, bytes])
            if word == FAILED:
                raise Abandoned(f"stopped, because rank {rank} did")
            self._heard[rank, word].append(payload)
