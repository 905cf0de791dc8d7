"""Who makes a call: a thread, or a task of an event loop, whose calls each run in a thread of their own."""

from __future__ import annotations

import threading
from contextvars import ContextVar

_task: ContextVar[object] = ContextVar("task", default=None)


def make_for(task: object) -> None:
    """What is called in this context from now on is called for a task."""
    _task.set(task)


def caller() -> object:
    """The task for which this thread calls, or the thread."""
    return _task.get() or threading.current_thread()
