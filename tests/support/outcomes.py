"""What an interrupt says of sinks."""

from __future__ import annotations

from ckpt_transport.errors import TaintedError, UpdateAbortedError


def outcome_of(interrupt: KeyboardInterrupt) -> str:
    """What sinks serve by the interrupt's word."""
    match interrupt.__cause__:
        case UpdateAbortedError():
            return "old"
        case TaintedError():
            return "tainted"
        case cause:
            assert cause is None
            return "new"
