"""Whoever wakes a thread pays for it only when that thread waits, and once."""

from __future__ import annotations

import select
import signal
from collections.abc import Iterator

import pytest

from ckpt_transport.control.waker import Waker


@pytest.fixture
def waker() -> Iterator[Waker]:
    made = Waker()
    yield made
    made.close()


def is_readable(waker: Waker) -> bool:
    return bool(select.select([waker.descriptor], [], [], 0)[0])


def test_given_nobody_who_waits_then_wakes_write_nothing_and_the_next_wait_does_not_begin(waker: Waker) -> None:
    for _ in range(100_000):
        waker.wake()
    assert not is_readable(waker)
    assert waker.begin()
    assert waker.end()


def test_given_somebody_who_waits_then_many_wakes_end_one_wait_and_not_the_next(waker: Waker) -> None:
    assert not waker.begin()
    for _ in range(100_000):
        waker.wake()
    assert is_readable(waker)
    assert waker.end()
    assert not is_readable(waker)
    assert not waker.begin()
    assert not waker.end()


def test_given_a_wait_that_ended_by_itself_then_the_next_one_begins(waker: Waker) -> None:
    assert not waker.begin()
    assert not waker.end()
    assert not waker.begin()


def test_given_a_signal_handler_that_wakes_then_nothing_stands_still(waker: Waker) -> None:
    """It may run at any moment of the thread that it interrupts, also where that thread is in the waker."""
    seen = 0
    before = signal.signal(signal.SIGPROF, lambda *_: waker.wake())
    signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
    try:
        while seen < 20:
            woken_before = waker.begin()
            readable = is_readable(waker)
            woken = waker.end()
            assert woken or not (woken_before or readable)
            seen += woken
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0, 0)
        signal.signal(signal.SIGPROF, before)


def test_given_a_closed_waker_then_it_closes_again_and_wakes_nobody(waker: Waker) -> None:
    waker.close()
    waker.close()
    waker.wake()
    assert not waker.end()
