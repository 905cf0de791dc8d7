"""Calls methods of an object that this program holds, whether it answers at once, in an event loop, or as an actor."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from ckpt_transport import CkptTransportError, EngineError

LOOP_SECONDS = 10.0
"""How long an event loop may take to begin what it is given."""


class ObjectCalls:
    """Calls methods of one object, one at a time, each with a deadline.

    * A coroutine function runs in an event loop, which turns in another thread than the caller's.
    * A method with ``remote``, as Ray's actors have them, is called there.
    * Any other method runs in a thread of its own, as it may block for ever.

    Args:
        target: the object. Methods that an ``LLM`` lacks are looked for at its ``llm_engine``.
        name: what people call it.
        loop: where its coroutines run; None where it has none.
    """

    def __init__(self, target: Any, name: str, loop: asyncio.AbstractEventLoop | None) -> None:
        self._owners = (target, getattr(target, "llm_engine", None))
        self._name, self._loop = name, loop
        self._last: Future[Any] = Future()
        self._last.set_result(None)

    def has(self, method: str) -> bool:
        """Whether the object has a method of that name."""
        return self._find(method) is not None

    def call(self, method: str, timeout: float, *args: Any, **kwargs: Any) -> Any:
        """What ``method`` returns.

        Raises:
            EngineError: it is not there, has failed, or has not returned within ``timeout`` seconds; or the event loop
                does not turn.
        """
        found = self._find(method)
        if found is None:
            raise EngineError(f"{self._name} has no method {method}")
        deadline = time.monotonic() + timeout
        try:
            return self._answer(found, args, kwargs, deadline)
        except TimeoutError as error:
            busy = "; an actor that runs one method at a time answers when that has ended" if is_remote(found) else ""
            raise EngineError(f"{method} of {self._name} has not returned within {timeout:g} s{busy}") from error
        except CkptTransportError:
            raise
        except Exception as error:
            raise EngineError(f"{method} of {self._name} failed with {type(error).__name__}: {error}") from error

    def leave(self, method: str, **kwargs: Any) -> None:
        """Have an actor do so when it has done all that it was asked before, and do not wait. Others are not asked."""
        found: Any = self._find(method)
        if is_remote(found):
            found.remote(**kwargs)

    def _find(self, method: str) -> Callable[..., Any] | None:
        return next((found for owner in self._owners if (found := getattr(owner, method, None)) is not None), None)

    def _answer(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: float) -> Any:
        if is_remote(method):
            return method.remote(*args, **kwargs).future().result(deadline - time.monotonic())
        if inspect.iscoroutinefunction(method):
            return self._in_loop(method(*args, **kwargs), deadline)
        answer = self._in_thread(lambda: method(*args, **kwargs), deadline)
        return self._in_loop(_awaited(answer), deadline) if inspect.isawaitable(answer) else answer

    def _in_thread(self, call: Callable[[], Any], deadline: float) -> Any:
        """Wait for ``call``, once the one before, which nobody waits for any more, has returned."""
        if not self._last.done():
            self._last.exception(deadline - time.monotonic())
        done = self._last = Future()

        def run() -> None:
            try:
                done.set_result(call())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, name="ckpt-transport-handle", daemon=True).start()
        return done.result(deadline - time.monotonic())

    def _in_loop(self, call: Coroutine[Any, Any, Any], deadline: float) -> Any:
        begun = threading.Event()

        async def begin() -> Any:
            begun.set()
            return await call

        if self._loop is None:
            call.close()
            raise EngineError(
                f"{self._name} answers in an event loop: make the fleet there, or give it VllmHandle(it, loop)"
            )
        answer = asyncio.run_coroutine_threadsafe(begin(), self._loop)
        if not begun.wait(min(LOOP_SECONDS, deadline - time.monotonic())):
            answer.cancel()
            call.close()
            raise EngineError(
                f"the event loop of {self._name} does not turn: call the fleet from another thread, as in "
                "await asyncio.to_thread(fleet.update, server, version)"
            )
        try:
            return answer.result(deadline - time.monotonic())
        except TimeoutError:
            answer.cancel()
            raise


def is_remote(method: Any) -> bool:
    """Whether a method is one of an actor."""
    return hasattr(method, "remote")


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer
