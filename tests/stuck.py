"""Libraries that do not return."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckpt_transport.service.stuck import MayBeStuck
from ckpt_transport.transports import Poll, ReadSpan
from tests.conformance.transports.one_sided import ReadEndpoint

SOON = 0.5
TICK_SECONDS = 0.05
watch_over = MayBeStuck._watch_over


def watch_impatiently(self: MayBeStuck, patience: float) -> None:
    """In place of ``MayBeStuck._watch_over``: a thread that is stuck is given up soon, and peers wait as they do."""
    watch_over(self, SOON)


def read_hangs(count: int, until: Path) -> None:
    """Make a read of the one-sided transport of the tests hang inside the library, until a file is there."""
    MayBeStuck._watch_over = watch_impatiently  # type: ignore[method-assign]
    read = ReadEndpoint._read
    reads = 0

    def stuck(self: Any, sender: int, spans: Sequence[ReadSpan]) -> Poll:
        nonlocal reads
        reads += 1
        if reads == count:
            inside_the_library(until)
        return read(self, sender, spans)

    ReadEndpoint._read = stuck  # type: ignore[method-assign]


def abort_hangs(until: Path) -> None:
    """Make its abort hang."""
    MayBeStuck._watch_over = watch_impatiently  # type: ignore[method-assign]
    abort = ReadEndpoint._shut

    def stuck(self: Any) -> None:
        inside_the_library(until)
        abort(self)

    ReadEndpoint._shut = stuck  # type: ignore[method-assign]


def inside_the_library(until: Path) -> None:
    hanging(until).touch()
    while not until.exists():
        time.sleep(TICK_SECONDS)


def hanging(until: Path) -> Path:
    """The file that is there as soon as a call hangs until the other one is."""
    return until.with_suffix(".hangs")


@contextmanager
def interrupted_when(condition: Callable[[], bool]) -> Iterator[None]:
    """A block of the main thread that is interrupted, as by Ctrl-C, as soon as the condition holds."""
    main, over = threading.get_ident(), threading.Event()

    def interrupt() -> None:
        while not over.wait(TICK_SECONDS):
            if condition():
                signal.pthread_kill(main, signal.SIGINT)
                return

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
