"""What an error says to people who see no traceback: never nothing, and no colon before nothing."""

from __future__ import annotations

import signal
from contextlib import suppress

from ckpt_transport.errors import CkptTransportError

SIGNALLED = 128
"""Exit codes of programs that a signal has ended are this and the signal's number."""


def reason_of(error: BaseException) -> str:
    """What it says; the name of its class where it says nothing."""
    return _interrupted(error) or str(error) or type(error).__name__


def named_reason(error: BaseException) -> str:
    """The name of its class, and what it says, if anything."""
    return _interrupted(error) or with_name(type(error).__name__, str(error))


def _interrupted(error: BaseException) -> str:
    """Which interrupt of a person or of a system it is; empty for any other error."""
    match error:
        case KeyboardInterrupt() if not str(error):
            return "it was interrupted (KeyboardInterrupt)"
        case SystemExit(code=int(code)) if code > SIGNALLED:
            with suppress(ValueError):
                return f"it was ended by {signal.Signals(code - SIGNALLED).name}"
    return ""


def with_name(name: str, said: str) -> str:
    """The name of an error's class, and what it says, if anything."""
    return f"{name}: {said}" if said else name


def in_words(error: BaseException) -> str:
    """What it says; of an error that is not this library's with the name of its class."""
    return str(error) if isinstance(error, CkptTransportError) else named_reason(error)
