"""What is done to a participant, and when."""

from __future__ import annotations

import enum
import random
import signal
import threading
import time
from dataclasses import dataclass
from typing import Self

from tests.faults.campaign.participants import HEARTBEAT_TIMEOUT, Process


class Act(enum.StrEnum):
    """What is done."""

    KILL = "SIGKILL"
    PAUSE = "stopped, briefly"
    """For less than half of what heartbeats may be missing."""
    FREEZE = "stopped, too long"
    TERM = "SIGTERM"
    INT = "SIGINT"


SECONDS = {Act.PAUSE: (0.05, 0.4 * HEARTBEAT_TIMEOUT), Act.FREEZE: (1.3 * HEARTBEAT_TIMEOUT, 2.2 * HEARTBEAT_TIMEOUT)}
SIGNALS = {Act.KILL: signal.SIGKILL, Act.TERM: signal.SIGTERM, Act.INT: signal.SIGINT}
WEIGHTS = {Act.KILL: 5, Act.PAUSE: 1, Act.FREEZE: 2, Act.TERM: 1, Act.INT: 1}
"""How often each of them is chosen."""


@dataclass(frozen=True)
class Disturbance:
    """One act on one participant.

    Attributes:
        victim: the name of its role: ``source``, ``sink``, ``holder`` or ``joiner``.
        which: of several in that role.
        after: seconds from the beginning of the update.
        lasts: seconds for which it is stopped.
    """

    act: Act
    victim: str
    which: int
    after: float
    lasts: float

    @classmethod
    def choose(cls, chance: random.Random, roles: dict[str, int], earliest: float, longest: float) -> Self:
        """Any participant and any moment from ``earliest`` to ``longest``, with the same probability."""
        everybody = [(role, number) for role, count in roles.items() for number in range(count)]
        victim, which = chance.choice(everybody)
        (act,) = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
        return cls(act, victim, which, chance.uniform(earliest, longest), chance.uniform(*SECONDS.get(act, (0, 0))))

    def __str__(self) -> str:
        stopped = f" for {self.lasts:.2f} s" if self.lasts else ""
        return f"{self.act}{stopped} of {self.victim} {self.which} after {self.after:.3f} s"


class Strike:
    """A disturbance under way, in a thread of its own. The end of the block waits until a stopped victim goes on."""

    def __init__(self, disturbance: Disturbance, victim: Process) -> None:
        self._what, self._victim = disturbance, victim
        self._thread = threading.Thread(target=self._strike)

    def _strike(self) -> None:
        time.sleep(self._what.after)
        if self._what.act in SIGNALS:
            self._victim.signal(SIGNALS[self._what.act])
            return
        self._victim.signal(signal.SIGSTOP)
        time.sleep(self._what.lasts)
        self._victim.signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
