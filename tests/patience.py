"""Settings and deadlines under which nobody who lives is taken for dead, and a dead one is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

DEADLINE = 150.0
"""Seconds that nothing takes which does not hang, on a busy machine either."""
PATIENT: Mapping[str, Any] = {
    "heartbeat_interval": 0.1,
    "heartbeat_timeout": 60.0,
    "join_timeout": 60,
    "update_timeout": 120,
}
"""Settings under which nobody who lives is taken for dead, on a busy machine either."""
SWIFT: Mapping[str, Any] = {**PATIENT, "heartbeat_timeout": 8.0}
"""Settings under which a dead peer is noticed soon."""

STOPPED = 2 * SWIFT["heartbeat_timeout"]
"""Seconds for which a process is stopped that others are to take for dead."""
PATIENCE = 60.0
"""Seconds in which a process that was asked to end does, before it is killed."""


def with_enough_seconds(suffices: Callable[[float], bool], seconds: float = 2.0) -> None:
    """Try it with few seconds, which are enough on a machine that does nothing else, and with more until they are.

    Of what fails when a deadline has passed, the test then says how it fails, and the machine only how long it takes.
    """
    while not suffices(seconds):
        assert seconds < DEADLINE, "the deadline passes before what it is to end has begun"
        seconds *= 4
