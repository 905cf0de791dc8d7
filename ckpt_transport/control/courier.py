"""A courier hands on what somebody says to others, and brings their answers back together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from ckpt_transport.control.messages import Delivery, Dispatch, Message
from ckpt_transport.errors import CkptTransportError

HOLD_SECONDS = 2.0
"""For so long answers are held that wait for others. Whoever waits for all of them loses nothing by it."""
MOST_ADDRESSES = 64
"""To so many a courier hands on what one has said: whoever says so may say it in another's name."""
HELD_BYTES = 1 << 20
"""Answers that are held for one address; with more they go."""


class Combined:
    """What several say, in which the same words of several stand once. What one of them says keeps its order."""

    def __init__(self) -> None:
        self._parts: list[tuple[list[str], bytes]] = []
        self._at: dict[bytes, int] = {}
        self._last: dict[str, int] = {}
        """Of each, which part has what it said last."""

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, who: str, body: bytes) -> bool:
        """Somebody says this; return whether nobody has said it before."""
        at = self._at.get(body, -1)
        known = self._last.get(who, -1) < at
        if not known:
            at = self._at[body] = len(self._parts)
            self._parts.append(([], body))
        self._parts[at][0].append(who)
        self._last[who] = at
        return not known

    def delivery(self) -> Delivery:
        """All of it."""
        return Delivery(tuple((tuple(who), body) for who, body in self._parts))


@dataclass(slots=True)
class _Held:
    """What is held for one address.

    Attributes:
        awaited: those that have not answered yet.
        said: who says what.
        nbytes: of that.
        due: when it goes, in seconds of the monotonic clock.
        known: to whom something was handed on.
        way: the connection on which it goes: to the courier of this one; empty where it goes straight.
    """

    awaited: set[str] = field(default_factory=set)
    said: Combined = field(default_factory=Combined)
    nbytes: int = 0
    due: float = math.inf
    known: set[str] = field(default_factory=set)
    way: bytes = b""


class Courier:
    """Does a courier's work for those who have asked for it.

    Args:
        post: sends a message to an address.
        bring: has the courier on a connection bring a message to an address, as an answer or not.
    """

    def __init__(
        self, post: Callable[[str, Message], None], bring: Callable[[bytes, str, Message, bool], None]
    ) -> None:
        self._post, self._bring = post, bring
        self._held: dict[str, _Held] = {}

    def hand_on(self, sender: str, dispatch: Dispatch, here: str, way: bytes) -> Iterable[bytes]:
        """Tell each what is for it, and return what is for ``here``. Whoever cannot be reached has not answered.

        Args:
            sender: who says it.
            dispatch: what, and to whom.
            here: the address of this one.
            way: the connection on which a courier has brought it; empty where it came straight.
        """
        held = self._held.setdefault(sender, _Held())
        if dispatch.answered or way != held.way:
            self._let_go(sender, held)
        held.way = way
        if dispatch.answered:
            held.awaited = {address for addresses, _ in dispatch.parts for address in addresses}
        own = []
        for addresses, body in dispatch.parts:
            delivery = Delivery((((sender,), body),))
            for address in addresses:
                if address == here:
                    own.append(body)
                    continue
                if address not in held.known and len(held.known) == MOST_ADDRESSES:
                    continue
                held.known.add(address)
                with suppress(CkptTransportError):
                    self._post(address, delivery)
        return own

    def hold(self, address: str, who: str, body: bytes, *, answers: bool) -> None:
        """Bring something back: when all have answered, or after a moment. Nothing goes to who has sent nobody."""
        held = self._held.get(address)
        if held is None:
            return
        held.nbytes += len(body) if held.said.add(who, body) else 0
        held.due = min(held.due, time.monotonic() + HOLD_SECONDS)
        if answers:
            held.awaited.discard(who)
        if not held.awaited or held.nbytes > HELD_BYTES:
            self._let_go(address, held)

    def tend(self) -> None:
        """Bring back what was held for long enough."""
        if not self._held:
            return
        now = time.monotonic()
        for address, held in list(self._held.items()):
            if held.due < now:
                self._let_go(address, held)

    def forget(self, address: str) -> None:
        """Nothing is brought there any more."""
        self._held.pop(address, None)

    def _let_go(self, address: str, held: _Held) -> None:
        if held.said:
            delivery, held.said = held.said.delivery(), Combined()
            held.nbytes, held.due = 0, math.inf
            with suppress(CkptTransportError):  # who is gone is found out by its silence
                if held.way:
                    self._bring(held.way, address, delivery, not held.awaited)
                else:
                    self._post(address, delivery)
