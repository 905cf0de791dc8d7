"""A guard admits one call at a time, also after one was interrupted on its way in or out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ckpt_transport.errors import UsageError
from ckpt_transport.service.call_guard import CallGuard
from tests.patience import DEADLINE
from tests.support.interrupting import Interrupter


def admits_another_thread(guard: CallGuard) -> bool:
    def call() -> bool:
        try:
            return guard.one("another", 0.0, lambda: True)
        except UsageError:
            return False

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(call).result(DEADLINE)


def test_given_an_interrupt_at_any_step_of_a_call_then_others_are_admitted() -> None:
    guard = CallGuard("ParameterServer")

    def call() -> None:
        guard.one("first", DEADLINE, lambda: None)

    interrupter = Interrupter("call_guard.py")
    interrupter.run(call, 0)
    for at in range(1, interrupter.steps + 1):
        with pytest.raises(KeyboardInterrupt) as held:
            interrupter.run(call, at)
        assert admits_another_thread(guard), interrupter.place
        del held


def test_given_a_call_that_waits_in_vain_then_the_one_that_runs_is_still_alone() -> None:
    guard = CallGuard("ParameterServer")

    def call() -> None:
        assert not admits_another_thread(guard)
        assert not admits_another_thread(guard)
        assert guard.inside

    guard.one("first", DEADLINE, call)
    assert not guard.inside
    assert admits_another_thread(guard)
