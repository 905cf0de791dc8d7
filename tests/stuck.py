"""Libraries that do not return."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ckpt_transport.transports import Poll, ReadSpan
from tests.conformance.transports.one_sided import ReadEndpoint


def read_hangs(count: int, until: Path) -> None:
    """Make a read of the one-sided transport of the tests hang inside the library, until a file is there."""
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
    abort = ReadEndpoint._shut

    def stuck(self: Any) -> None:
        inside_the_library(until)
        abort(self)

    ReadEndpoint._shut = stuck  # type: ignore[method-assign]


def inside_the_library(until: Path) -> None:
    while not until.exists():
        time.sleep(0.05)
