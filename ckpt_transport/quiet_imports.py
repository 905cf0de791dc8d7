"""A command that is interrupted while its modules are imported ends without a word, as one that runs does."""

from __future__ import annotations

import importlib
import os
import signal
from types import ModuleType

INTERRUPTED = 128 + signal.SIGINT


def imported(name: str) -> ModuleType:
    """A module. An interrupt meanwhile ends the process: there is nothing to clean up, and modules would be torn."""
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    module = importlib.import_module(name)
    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return module
