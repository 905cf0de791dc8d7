"""Faults that strike in a process of a test: at a certain call of a certain method."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

from ckpt_transport.execution import Ledger
from ckpt_transport.update.participant import Participant
from tests.patience import DEADLINE, STOPPED
from tests.standing_still import freeze, stop_myself

PHASES = ("propose", "open", "connect", "run", "abort")
"""Methods of a participant in which a fault can be placed."""
STEPS = ("ended",)
"""Methods of a ledger in which a fault can be placed: a fill, a transfer or an apply has ended."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and where.

    Attributes:
        where: a method of the engine (``hold``, ``advance``, ``load``, ``finish``, ``resume``), of the participant
            (one of PHASES), of the ledger (one of STEPS), or of the source's meter (``sent``).
        count: at which call, counted from 1.
        act: ``kill`` the process, ``stop`` it for STOPPED seconds, ``freeze`` it until somebody thaws it, ``raise`` an
            error, ``hang`` for as long as the process lives, or ``lie``: return another digest.
    """

    where: str
    count: int = 1
    act: str = "kill"

    def strike(self) -> str:
        """Raise, end, never return, or return what the method shall; empty when the method is to be called."""
        if self.act == "stop":
            stop_myself(STOPPED)
            return ""
        if self.act == "freeze":
            freeze()
            return ""
        if self.act == "lie":
            return "0" * 64
        if self.act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.act == "hang":
            time.sleep(DEADLINE * 10)
        raise RuntimeError(f"injected into {self.where}")


def inject(fault: Fault, target: Any) -> None:
    """Make call number ``fault.count`` of the method strike; ``target`` is an object or a class."""
    method = getattr(target, fault.where)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fault.count and (struck := fault.strike()):
            return struck
        return method(*args, **kwargs)

    setattr(target, fault.where, wrapped)


def inject_into(fault: Fault | None, other: Any) -> None:
    """Place a fault where it belongs; in ``other`` what is no method of participant or ledger."""
    if fault is not None:
        inject(fault, Participant if fault.where in PHASES else Ledger if fault.where in STEPS else other)
