"""Whoever interrupts a call learns from the interrupt's cause what has become of the sinks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ckpt_transport.errors import TaintedError, UpdateAbortedError
from ckpt_transport.update.turn import Turn


@contextmanager
def explained(turn: Turn) -> Iterator[None]:
    """Give an interrupt that comes out of the block a cause, unless every sink serves what was brought.

    Args:
        turn: of the update that the block makes.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as interrupt:
        if interrupt.__cause__ is not None:
            raise
        if isinstance(interrupt.__context__, UpdateAbortedError | TaintedError):
            raise interrupt from interrupt.__context__
        if turn.decided:
            raise
        raise interrupt from UpdateAbortedError(f"{turn.call} was interrupted before it changed anything")
