"""What an error says to people who see no traceback: never nothing, and no colon before nothing."""

from __future__ import annotations

from ckpt_transport.errors import CkptTransportError


def reason_of(error: BaseException) -> str:
    """What it says; the name of its class where it says nothing."""
    return str(error) or type(error).__name__


def named_reason(error: BaseException) -> str:
    """The name of its class, and what it says, if anything."""
    return with_name(type(error).__name__, str(error))


def with_name(name: str, said: str) -> str:
    """The name of an error's class, and what it says, if anything."""
    return f"{name}: {said}" if said else name


def in_words(error: BaseException) -> str:
    """What it says; of an error that is not this library's with the name of its class."""
    return str(error) if isinstance(error, CkptTransportError) else named_reason(error)
