"""Whoever interrupts a call learns from the interrupt's cause what has become of the sinks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ckpt_transport.errors import TaintedError, UpdateAbortedError
from ckpt_transport.update.turn import Turn


@contextmanager
def explained(call: str, turn: Turn | None = None) -> Iterator[Turn]:
    """Give an interrupt that comes out of the block a cause, unless every sink serves what was brought.

    Args:
        call: what is interrupted, in words.
        turn: of the update that the block makes; by default a new one.

    Yields: the turn.
    """
    before: BaseException | None = None
    try:
        before = sys.exception()
        turn = turn or Turn(call)
        yield turn
    except Exception:
        raise
    except BaseException as interrupt:
        if interrupt.__cause__ is not None:
            raise
        error = interrupt.__context__
        if isinstance(error, UpdateAbortedError | TaintedError) and error is not before:
            raise interrupt from error
        if turn is not None and turn.decided:
            raise
        raise interrupt from UpdateAbortedError(f"{call} was interrupted before it changed anything")
