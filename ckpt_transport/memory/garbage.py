"""Keeps the garbage collector away while much is done per tensor."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collections() -> Iterator[None]:
    """Within the block nothing is collected: in the process of an engine or of a trainer a full collection takes a
    tenth of a second and more, stalls every thread, and comes each time that some thousands of objects were made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
