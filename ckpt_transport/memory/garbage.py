"""Keeps the garbage collector away while much is done per tensor."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collections() -> Iterator[None]:
    """Within the block nothing is collected: a full collection looks at all objects of an engine or of a trainer,
    stalls every thread meanwhile, and comes each time that some thousands of objects were made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
