"""Calling a library that blocks, away from the thread that drives the endpoint."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ckpt_transport.transports.interface import Control
from ckpt_transport.transports.polled import Poll


class Calls:
    """Threads of an endpoint's own on which it calls a library that blocks. Every end of a call wakes the pump.

    So :attr:`~ckpt_transport.transports.interface.Endpoint.poll_seconds` of an endpoint that uses it may be long.

    Args:
        name: of the threads, for stacks and profilers.
        control: of the endpoint.
        count: how many calls may run at once; the others wait their turn, in the order in which they were started.
        prepare: called first on every thread, for instance to choose a device.
    """

    def __init__(
        self, name: str, control: Control, count: int = 1, prepare: Callable[[], object] | None = None
    ) -> None:
        self._control = control
        self._threads = ThreadPoolExecutor(count, name, initializer=prepare)

    def start(self, call: Callable[[], object]) -> Poll:
        """Call it soon. The poll says True when it has returned, and raises what it raised."""
        running = self._threads.submit(call)
        running.add_done_callback(lambda _: self._control.wake())

        def ended() -> bool:
            if not running.done():
                return False
            running.result()
            return True

        return ended

    def close(self) -> None:
        """Start no more calls, and wait for those that run. Idempotent."""
        self._threads.shutdown(cancel_futures=True)
