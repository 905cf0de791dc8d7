"""Who is watched, and when each has given its last sign of life."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from ckpt_transport.control.touches import Touch, is_file, last_touch
from ckpt_transport.errors import PeerLostError

LOOKS = 100
"""How often somebody's sign of life is looked for behind what others send: sockets take turns among their peers."""


class Liveness:
    """Remembers when watched peers were heard, and says who has been silent for too long.

    Args:
        timeout: seconds without a sign of life after which a peer counts as lost.
        look: takes in what has arrived, without a wait; says whether there was anything.
    """

    def __init__(self, timeout: float, look: Callable[[], bool]) -> None:
        self._timeout, self._look = timeout, look
        self._heard: dict[str, float] = {}
        self._touched: dict[str, tuple[Touch | None, float]] = {}
        """Of each that may touch a file: its last touch, and when that was looked at."""
        self._none_lost_until = 0.0
        """Before then, nobody can have been silent for too long."""

    @property
    def watched(self) -> Iterable[str]:
        return self._heard

    def __contains__(self, address: str) -> bool:
        return address in self._heard

    def watch(self, address: str) -> None:
        """Expect signs of life from there, from now on."""
        self._heard[address] = now = time.monotonic()
        if is_file(address):
            self._touched[address] = last_touch(address), now

    def unwatch(self, address: str) -> None:
        self._heard.pop(address, None)
        self._touched.pop(address, None)

    def hear(self, address: str) -> None:
        """There is a sign of life from that address; of who is not watched it means nothing."""
        if address in self._heard:
            self._heard[address] = time.monotonic()

    def look_at_file(self, address: str) -> None:
        """What lies at that address now is what that one touches: it has just sent a sign of life."""
        touch = last_touch(address) if address in self._touched else None
        if touch is not None:
            self._touched[address] = touch, time.monotonic()

    def check(self, watched: Iterable[str] | None) -> None:
        """Check the peers in ``watched``; None for all.

        Raises:
            PeerLostError: one has been silent for too long; names it.
        """
        now = time.monotonic()
        if now < self._none_lost_until:
            return
        oldest = now - self._timeout
        for address, heard in list(self._heard.items()):
            if heard < oldest:
                self._see(address, now)
        self._none_lost_until = min(list(self._heard.values()), default=now) + self._timeout
        for address in self._heard if watched is None else watched:
            looks = 0
            while self._heard.get(address, oldest) < oldest and looks < LOOKS and self._look():
                looks += 1
            if self._heard.get(address, oldest) < oldest:
                raise PeerLostError(f"no sign of life from {address} for {self._timeout:g} s")

    def _see(self, address: str, now: float) -> None:
        """Look whether somebody has touched its file since the last look, and when.

        What cannot be counts as now: in containers the monotonic clocks of a host may differ. The file of another
        socket at the same path says nothing of the one that was watched.
        """
        before, looked_at = self._touched.get(address, (None, now))
        found = last_touch(address)
        if address not in self._touched or found is None or found == before:
            return
        if before is None or (found.file, found.mark) == (before.file, before.mark):
            self._touched[address] = found, now
            self._heard[address] = found.at if looked_at <= found.at <= now else now
