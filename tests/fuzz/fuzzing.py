"""Whatever is read gives a good value or one of our errors, in bounded memory.

``make test`` tries a bounded number of inputs, always the same ones. ``make fuzz`` tries new ones, each kind for
``FUZZ_SECONDS``.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpt_transport.errors import CkptTransportError

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
EXAMPLES = 60
"""In each batch; ``make test`` runs one."""
MOST_BYTES = 1 << 30
"""No input that tests make is worth more memory."""
Input = TypeVar("Input")


def fuzz(
    inputs: st.SearchStrategy[Input],
    read: Callable[[Input], object],
    *errors: type[BaseException],
    examples: int = EXAMPLES,
) -> None:
    """Have ``read`` read inputs, which may raise nothing but ``errors``, by default ours."""
    allowed = errors or (CkptTransportError,)

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=not SECONDS,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def batch(made: Input) -> None:
        with little_memory():
            try:
                read(made)
            except allowed:
                return

    deadline = time.monotonic() + SECONDS
    batch()
    while time.monotonic() < deadline:
        batch()


@contextmanager
def little_memory() -> Iterator[None]:
    """Within the block this process gets so much more memory, and a MemoryError when it wants more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
