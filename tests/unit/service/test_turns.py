"""Turns are passed on, whatever happens to those who had them."""

from __future__ import annotations

import threading
from contextlib import suppress

from ckpt_transport.service.call_guard import CallGuard
from ckpt_transport.service.turns import Turns
from ckpt_transport.update.turn import Turn
from tests.patience import DEADLINE
from tests.support.interrupting import Interrupter


def test_given_an_interrupt_at_any_step_of_a_turn_then_another_thread_gets_the_next() -> None:
    turns = Turns(CallGuard("ParameterServer"), alone=True, raise_interrupt=lambda: None)
    had: list[str] = []

    def take(call: str) -> None:
        turns.one(Turn(call), DEADLINE, lambda: had.append(call))

    at, place = 0, "the first"
    while place:
        at += 1
        interrupter = Interrupter()
        with suppress(KeyboardInterrupt):
            interrupter.run(lambda: take("is interrupted"), at)
        place = interrupter.place
        following = threading.Thread(target=take, args=(f"after {at}",))
        following.start()
        following.join(DEADLINE)
        assert had[-1] == f"after {at}", place
        assert turns.waiting == 0, place
    assert at > 20
