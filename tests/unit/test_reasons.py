"""Errors that say nothing are named, without a colon before nothing."""

from __future__ import annotations

import asyncio

import pytest

from ckpt_transport.reasons import named_reason, reason_of

INTERRUPTED = "it was interrupted (KeyboardInterrupt)"


@pytest.mark.parametrize(
    ("error", "reason", "named"),
    [
        (asyncio.CancelledError(), "CancelledError", "CancelledError"),
        (KeyboardInterrupt(), INTERRUPTED, INTERRUPTED),
        (KeyboardInterrupt("no room"), "no room", "KeyboardInterrupt: no room"),
        (SystemExit(143), "it was ended by SIGTERM", "it was ended by SIGTERM"),
        (SystemExit(2), "2", "SystemExit: 2"),
        (SystemExit(999), "999", "SystemExit: 999"),
        (ValueError("no such shape"), "no such shape", "ValueError: no such shape"),
    ],
)
def test_given_an_error_then_its_reason_is_never_empty_and_no_colon_stands_before_nothing(
    error: BaseException, reason: str, named: str
) -> None:
    assert (reason_of(error), named_reason(error)) == (reason, named)
