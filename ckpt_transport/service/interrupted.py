"""Whoever interrupts a call learns from the interrupt's cause what has become of the sinks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ckpt_transport.errors import TaintedError, UpdateAbortedError
from ckpt_transport.update.turn import Turn


@contextmanager
def explained(call: str) -> Iterator[list[Turn]]:
    """Give an interrupt that comes out of the block a cause, unless every sink serves what was brought.

    Args:
        call: what is interrupted, in words.

    Yields: where the block puts the turn of its update, once it has one.
    """
    turns: list[Turn] = []
    try:
        yield turns
    except Exception:
        raise
    except BaseException as interrupt:
        if interrupt.__cause__ is not None:
            raise
        if isinstance(interrupt.__context__, UpdateAbortedError | TaintedError):
            raise interrupt from interrupt.__context__
        if any(turn.decided for turn in turns):
            raise
        raise interrupt from UpdateAbortedError(f"{call} was interrupted before it changed anything")
