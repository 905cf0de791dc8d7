"""One sink's way to the end of a staged update whose coordinator is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ckpt_transport.service import questions as q
from ckpt_transport.update.follower import Follower
from ckpt_transport.update.settlement import Course, Settlement, Standing

ASK_SECONDS = 0.2
"""How often a sink is asked again that has not answered, or waits for others itself."""


class Settling:
    """Asks the other sinks how far they are until it is known how the update ends.

    Args:
        follower: this sink's place in the update.
        coordinator: the address of the one that is gone, or only sleeps.
        ask: sends a question to an address.
        patience: seconds of silence after which a sink counts as dead.
        reason: why the coordinator counts as gone.

    Attributes:
        in_doubt: why this sink cannot tell how the update ends, without its label; empty when it may.
    """

    def __init__(
        self,
        follower: Follower,
        coordinator: str,
        ask: Callable[[str, q.AskStanding], None],
        patience: float,
        reason: BaseException,
    ) -> None:
        self.follower, self.coordinator, self.reason = follower, coordinator, reason
        self._ask, self._patience = ask, patience
        self._others: Mapping[int, str] = {
            rank: address for rank, address in follower.sinks.items() if rank != follower.rank
        }
        self._settlement = Settlement(follower.rank, self._others, follower.standing)
        now = time.monotonic()
        self._heard = dict.fromkeys(self._others, now)
        self._asked = 0.0
        self.in_doubt = ""

    @property
    def standing(self) -> Standing:
        return self._settlement.standing

    def turn(self) -> Course:
        """Ask again where it is time to; what this sink does now."""
        now = time.monotonic()
        if now - self._asked > ASK_SECONDS:
            self._asked = now
            for rank, address in self._others.items():
                self._ask(address, q.AskStanding(self.follower.staged, rank))
        for rank, heard in self._heard.items():
            if now - heard > self._patience:
                self._settlement.loses(rank)
        course = self._settlement.course()
        if course is Course.IN_DOUBT:
            self.in_doubt = f"the coordinator is gone ({self.reason}), and no other sink of that update answers"
        return course

    def hears(self, said: q.SayStanding) -> None:
        """Take in what a sink has said of this update."""
        if said.staged == self.follower.staged and said.rank in self._others:
            self._heard[said.rank] = time.monotonic()
            self._settlement.hears(said.rank, said.standing)
