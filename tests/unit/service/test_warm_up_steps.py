"""A warm-up tells of the steps that it has done, and ends between two."""

from __future__ import annotations

import threading
from collections.abc import Generator

from ckpt_transport.service.warm_up import WarmUp

DEADLINE = 30.0


def test_given_steps_that_say_nothing_then_only_the_one_after_them_is_told() -> None:
    def steps() -> Generator[str]:
        yield from ("first", "", "", "last")

    warm_up = WarmUp("engine", steps)
    while not warm_up.ended:
        warm_up._thread.join(DEADLINE)
    assert [each.partition(" (")[0] for each in warm_up.said.split(": ", 1)[1].split(", ")] == ["first", "last"]


def test_given_an_update_that_comes_between_such_steps_then_no_further_one_runs() -> None:
    runs, goes_on, closed = threading.Event(), threading.Event(), threading.Event()

    def steps() -> Generator[str]:
        try:
            yield "first"
            runs.set()
            assert goes_on.wait(DEADLINE)
            yield ""
            raise AssertionError("a step ran after the update had come")
        finally:
            closed.set()

    warm_up = WarmUp("engine", steps)
    assert runs.wait(DEADLINE)
    leaving = threading.Thread(target=warm_up.leave)
    leaving.start()
    assert warm_up._left.wait(DEADLINE)
    goes_on.set()
    leaving.join(DEADLINE)
    assert closed.is_set()
    assert warm_up.said.startswith("warmed up until an update came: first")
