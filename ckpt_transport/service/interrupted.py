"""Whoever interrupts a call learns from the interrupt's cause what has become of the sinks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from ckpt_transport.errors import TaintedError, UpdateAbortedError
from ckpt_transport.update.turn import Turn

Result = TypeVar("Result")


def explained(call: str, act: Callable[[Turn], Result], turn: Turn | None = None) -> Result:
    """Run ``act``, and give an interrupt that comes out of it a cause, unless every sink serves what was brought.

    Args:
        call: what is interrupted, in words.
        act: makes an update in the turn that it is given.
        turn: of the update; by default a new one.

    Returns: what ``act`` does.
    """
    before: BaseException | None = None
    try:
        before = sys.exception()
        turn = turn or Turn(call)
        return act(turn)
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
