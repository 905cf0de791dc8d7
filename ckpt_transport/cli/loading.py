"""What commands work with is imported when one runs, so that ``--help`` answers at once: torch takes seconds."""

from __future__ import annotations

import functools
import importlib
import os
import signal
from collections.abc import Callable
from typing import ParamSpec

Arguments = ParamSpec("Arguments")
INTERRUPTED = 128 + signal.SIGINT


def loads_first(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Import what commands work with before ``command`` is called."""

    @functools.wraps(command)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        _load()
        command(*args, **kwargs)

    return run


def _load() -> None:
    """Import it. An interrupt meanwhile ends the process: there is nothing to clean up, and modules would be torn."""
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    importlib.import_module("ckpt_transport.cli.bringing")
    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
