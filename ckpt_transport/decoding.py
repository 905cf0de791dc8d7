"""Values of a type are decoded by many threads at once, also the first time, from bytes that may be anything."""

from __future__ import annotations

import threading
from typing import TypeVar

import msgspec

Kind = TypeVar("Kind")

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises of bytes that it cannot read. Text that is not UTF-8 gets an error of Python's, and so does what
is nested deeper than anybody reads."""
_lock = threading.Lock()
_prepared: set[object] = set()


def prepared(kind: Kind) -> Kind:
    """The same type, once msgspec knows all that it finds out of a type when it is used for the first time.

    It finds that out with Python code, between whose lines another thread may run. Two threads that do so at the same
    time end the process by a segmentation fault, as sinks of one process that join together once did.
    """
    if kind not in _prepared:
        with _lock:
            msgspec.msgpack.Decoder(kind)
            _prepared.add(kind)
    return kind
