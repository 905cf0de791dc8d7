"""Work that must not be left half done runs where no signal interrupts it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from ckpt_transport.events import about, speaking_for

Result = TypeVar("Result")


def shielded(work: Callable[[], Result], hurry: Callable[[], None]) -> tuple[Result, BaseException | None]:
    """Run ``work`` to its end; what it returns, and the first interrupt that came meanwhile.

    A signal handler raises in the main thread, between any two instructions: an answer that was just received would be
    lost. So there the work gets a thread of its own.

    Args:
        work: what must end once it has begun.
        hurry: makes it end soon; called when interrupts come again.

    Raises: what ``work`` raises.
    """
    if threading.current_thread() is not threading.main_thread():
        return work(), None
    done: Future[Result] = Future()
    begun = threading.Lock()
    member, update = about.member, about.update

    def run() -> None:
        if not begun.acquire(blocking=False):
            return
        with speaking_for(member, update):
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

    interrupts: list[BaseException] = []
    while True:
        try:
            if len(interrupts) > 1:
                hurry()
            threading.Thread(target=run, name="ckpt-transport-shielded", daemon=True).start()
            done.exception()
            break
        except BaseException as error:
            interrupts.append(error)
    return done.result(), interrupts[0] if interrupts else None
