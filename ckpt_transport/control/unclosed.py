"""What nobody has closed is closed when it is collected: ZeroMQ waits for ever for a socket that is left to itself."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any


def close_when_collected(owner: object, *closes: Callable[[], object]) -> weakref.finalize[Any, Any]:
    """Have these called, in turn and on a thread of their own, when ``owner`` is collected.

    Any thread may collect it, also one that a call waits for. Nothing is called in a process that was forked from this
    one, or when the interpreter ends. Who has closed it himself detaches what this returns.

    Args:
        owner: none of the calls holds it.
        closes: hold all that they close.
    """
    closing = weakref.finalize(owner, _close_beside, os.getpid(), closes)
    closing.atexit = False
    return closing


def _close_beside(process: int, closes: tuple[Callable[[], object], ...]) -> None:
    def close() -> None:
        for each in closes:
            each()

    if os.getpid() == process:
        with contextlib.suppress(RuntimeError):  # no thread begins while the interpreter ends
            threading.Thread(target=close, name="ckpt-transport-close", daemon=True).start()
