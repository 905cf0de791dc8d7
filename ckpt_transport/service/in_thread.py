"""A call that blocks runs in a thread of its own while an event loop goes on; cancelling it ends it as an interrupt."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import Protocol, TypeVar

from ckpt_transport.update.caller import make_for

Result = TypeVar("Result")


class InThread(Protocol):
    """Awaits a call that blocks, in a thread of its own, and interrupts it where that is cancelled."""

    async def __call__(self, call: Callable[[], Result], /) -> Result: ...


async def in_thread(
    call: Callable[[], Result], interrupt: Callable[[int, BaseException], bool], over: Callable[[int], None]
) -> Result:
    """Await ``call`` in a new thread.

    Where this is cancelled, the thread is interrupted once, and waited for: nothing of the call goes on afterwards. The
    error has the cause that an interrupt of the call has; or the call's own error, where it has failed by itself. The
    thread has the context variables of the task.

    Args:
        call: what blocks.
        interrupt: has an error raised in a thread; False when that cannot be done yet.
        over: told the thread when the call has ended, so that no later thread of that number is interrupted.
    """
    done: Future[Result] = Future()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(result)
        finally:
            over(threading.get_ident())

    context = copy_context()
    context.run(make_for, asyncio.current_task())
    thread = threading.Thread(target=context.run, args=(run,), name="ckpt-transport-call", daemon=True)
    thread.start()
    awaited = asyncio.wrap_future(done)
    try:
        return await asyncio.shield(awaited)
    except asyncio.CancelledError as cancelled:
        await _end(awaited, lambda: interrupt(thread.ident or 0, asyncio.CancelledError()))
        over(thread.ident or 0)
        raise cancelled from _why(done)


def _why(done: Future[Result]) -> BaseException | None:
    error = done.exception()
    return error.__cause__ if isinstance(error, asyncio.CancelledError) else error


async def _end(awaited: asyncio.Future[Result], interrupt: Callable[[], bool]) -> None:
    """Interrupt the thread, and wait until it has ended, however often this is cancelled meanwhile."""
    interrupted = False
    while not awaited.done():
        interrupted = interrupted or interrupt()
        try:
            await asyncio.wait([awaited], timeout=0.05)
        except asyncio.CancelledError:
            continue
    if not awaited.cancelled():
        awaited.exception()


async def to_its_end(call: Callable[[], Result]) -> Result:
    """Await ``call`` in a new thread. Where this is cancelled, the call goes on, and is waited for nevertheless."""
    return await in_thread(call, lambda thread, error: True, lambda thread: None)
