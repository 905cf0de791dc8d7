"""Given steps for all cores, when one raises, then nothing runs any more when that is said."""

from __future__ import annotations

import threading
import time

import pytest

from ckpt_transport_fp8.parallel import run_parallel

MANY = 20_000
"""Steps that take minutes."""


def test_given_an_error_then_no_step_runs_after_it_is_raised() -> None:
    """So that nobody writes into memory that its owner may free by then."""
    ended: list[float] = []
    fails_now = threading.Event()

    def slow() -> None:
        assert fails_now.wait(120)
        time.sleep(0.02)
        ended.append(time.monotonic())

    def fails() -> None:
        fails_now.set()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_parallel([fails, *[slow] * MANY])
    raised = time.monotonic()
    time.sleep(0.1)
    assert len(ended) < MANY
    assert all(end <= raised for end in ended)
