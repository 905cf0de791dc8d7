"""The ranks of a check talk to each other on a side channel, past the transport under test."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable

import msgspec

from ckpt_transport.decoding import prepared
from ckpt_transport.testing.context import RankContext

FAILED = "failed"
PAUSE = 0.001
"""Seconds a rank sleeps between two polls, unless a message wakes it."""


class Broken(AssertionError):
    """This rank saw a promise broken."""


class Abandoned(Exception):
    """Another rank has stopped; this one has nothing to say."""


class SideChannel:
    """Carries words between the ranks of a check. Waiting is bounded, and ends when another rank has failed."""

    def __init__(self, context: RankContext, patience: float) -> None:
        self._context = context
        self._group = context.group("side_channel")
        self._control = context.control(self._group)
        self._heard: defaultdict[tuple[int, str], deque[bytes]] = defaultdict(deque)
        self._meetings = 0
        self._patience, self._end = patience, time.monotonic() + patience
        self._deaf = False

    def tell(self, word: str, *ranks: int, payload: bytes = b"") -> None:
        """Say ``word`` to these ranks; to everybody else when none is named."""
        for rank in ranks or self._group.peers:
            self._control.send(rank, msgspec.msgpack.encode((word, payload)))

    def heard(self, word: str, rank: int) -> bytes | None:
        """What came with ``word`` from ``rank``, once for each time it was said; None when it was not."""
        self.listen()
        said = self._heard[rank, word]
        return said.popleft() if said else None

    def hear(self, word: str, *ranks: int) -> dict[int, bytes]:
        """Wait until these ranks (everybody else by default) have said ``word``."""
        payloads: dict[int, bytes] = {}
        for rank in ranks or self._group.peers:
            said = self._heard[rank, word]
            self.until(lambda said=said: bool(said), f"rank {rank} to say '{word}'")  # type: ignore[misc]
            payloads[rank] = said.popleft()
        return payloads

    def meet(self, payload: bytes = b"") -> dict[int, bytes]:
        """Wait until all ranks are here, and return everybody's payload."""
        self._meetings += 1
        word = f"meeting {self._meetings}"
        self.tell(word, payload=payload)
        return self.hear(word) | {self._context.rank: payload}

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Poll ``condition``.

        Raises:
            Broken: it stayed false until the end of the check.
            Abandoned: another rank has failed.
        """
        while not condition():
            if time.monotonic() > self._end:
                raise Broken(f"the check ran for {self._patience:.3g} s and was still waiting for {what}")
            self.listen(PAUSE)

    def listen(self, seconds: float = 0.0) -> None:
        """Take in what has been said; wait up to ``seconds`` when nothing has."""
        self._context.mailbox.pump(seconds)
        while not self._deaf and (message := self._control.receive()) is not None:
            rank, said = message
            word, payload = msgspec.msgpack.decode(said, type=prepared(tuple[str, bytes]))
            if word == FAILED:
                raise Abandoned(f"stopped, because rank {rank} had")
            self._heard[rank, word].append(payload)

    def watch(self) -> None:
        """From now on heartbeats are exchanged, lost peers are the transport's to notice, and nobody talks here."""
        self._deaf = True
        self._context.watch()
