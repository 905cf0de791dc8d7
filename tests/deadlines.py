"""Deadlines of tests: one that hangs fails and shows where each of its threads is, and the other tests go on.

A long test is not a hang: only its own deadline ends it (``timeout`` in ``pyproject.toml``, or its marker), and nobody
reads its stacks before. Reading the stacks of threads that run, as ``faulthandler`` does, can kill CPython 3.11; an
error that is raised in the main thread reads them while they stand still.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Generator
from types import FrameType
from typing import Any

import pytest

GRACE = "timeout_grace"
STRIKES = 3
"""How often the error is raised, since a test may catch it, before the process ends."""

_stderr = pytest.StashKey[int]()
_runs = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(GRACE, "seconds in which a test ends that was told that its deadline has passed", default="30")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_stderr] = os.dup(2)  # before output is captured


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_stderr])


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """Begin the time of a test, in place of what pytest-timeout does.

    When it is over, the test fails, and cleans up. Where its main thread does not come back from a library, the
    process ends with all stacks on stderr: nobody else could end that test.
    """
    seconds, grace = settings.timeout, float(item.config.getini(GRACE))

    def is_over(number: int, frame: FrameType | None) -> None:
        if item.stash.get(_runs, False):
            pytest.fail(f"the test has run for {seconds:g} s, and hangs\n{stacks_of_threads()}")

    signal.signal(signal.SIGALRM, is_over)
    signal.setitimer(signal.ITIMER_REAL, seconds, grace)
    faulthandler.dump_traceback_later(seconds + STRIKES * grace, exit=True, file=item.config.stash[_stderr])
    return True


def stacks_of_threads() -> str:
    """Where all threads are, the main one last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sorted(sys._current_frames().items(), key=lambda item: item[0] == threading.main_thread().ident)
    return "\n".join(
        f"thread {names.get(thread, 'of a library')}:\n{''.join(traceback.format_stack(frame))}"
        for thread, frame in frames
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    try:
        return (yield)
    finally:
        stop()


def pytest_enter_pdb() -> None:
    stop()


def stop() -> None:
    """End the time of the test."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from running(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from running(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from running(item))


def running(item: pytest.Item) -> Generator[None, object, object]:
    """Only while a test itself runs an error is one of the test: elsewhere it would end pytest."""
    item.stash[_runs] = True
    try:
        return (yield)
    finally:
        item.stash[_runs] = False
