"""Forward passes go through a gate, so that weights change between them and never inside one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

from ckpt_transport.errors import TaintedError


class Gate:
    """Counts forward passes and can make the next one wait. Safe to use from any number of threads.

    Tensor-parallel ranks run the same sequence of forward passes, and a pass needs all of them. So that none of them
    waits inside a pass for one that stands before it, they are stopped in two steps: each says how many passes it has
    started (:meth:`hold`), then all are let go up to the largest number (:meth:`advance`).
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._started = 0
        self._active = 0
        self._limit: int | None = None
        self._held_since = 0.0
        self._tainted = ""
        self._nesting = threading.local()
        _gates.add(self)

    @property
    def started(self) -> int:
        """How many passes have been started."""
        with self._condition:
            return self._started

    def enter(self) -> None:
        """Begin a forward pass; waits while an update is applied. Passes within a pass go straight through.

        Raises:
            TaintedError: the weights are a mix of two versions.
        """
        depth = getattr(self._nesting, "depth", 0)
        if depth == 0:
            with self._condition:
                self._condition.wait_for(lambda: self._tainted or self._limit is None or self._started < self._limit)
                if self._tainted:
                    raise TaintedError(self._tainted)
                self._started += 1
                self._active += 1
        self._nesting.depth = depth + 1

    def leave(self) -> None:
        """End a forward pass. Without effect when this thread is in none."""
        depth = getattr(self._nesting, "depth", 0)
        if depth == 0:
            return
        self._nesting.depth = depth - 1
        if depth == 1:
            with self._condition:
                self._active -= 1
                self._condition.notify_all()

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """A forward pass as a ``with`` block, for engines that do not call the module itself."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def hold(self) -> int:
        """Start no further pass; return how many have been started."""
        with self._condition:
            self._limit = self._started
            self._held_since = time.monotonic()
            return self._started

    def advance(self, forwards: int, timeout: float) -> None:
        """Let passes start until there were ``forwards`` of them, then wait until none runs.

        Raises:
            TimeoutError: that did not happen within ``timeout`` seconds.
        """
        with self._condition:
            self._limit = max(forwards, self._started)
            self._condition.notify_all()
            if not self._condition.wait_for(lambda: self._started >= forwards and not self._active, timeout):
                raise TimeoutError(
                    f"forward pass {forwards} did not end within {timeout:g} s ({self._started} started, "
                    f"{self._active} running); do all ranks of the engine run the same forward passes?"
                )

    def wait_while_held(self, timeout: float) -> bool:
        """Wait as long as no pass may start, at most ``timeout`` seconds; return whether one may.

        For loops between two passes that have nothing better to do meanwhile.
        """
        with self._condition:
            return self._condition.wait_for(lambda: self._limit is None or self._started < self._limit, timeout)

    def resume(self) -> float:
        """Let passes run again; return for how many seconds they were held."""
        with self._condition:
            held = time.monotonic() - self._held_since if self._limit is not None else 0.0
            self._limit, self._tainted = None, ""
            self._condition.notify_all()
            return held

    def taint(self, reason: str) -> None:
        """Refuse every pass from now on, those that wait included."""
        with self._condition:
            self._tainted = reason
            self._condition.notify_all()

    def _go_on_in_child(self) -> None:
        """After a fork: nobody updates this copy of the weights any more, nor ends what other threads had begun."""
        self._condition = threading.Condition()
        self._active = int(getattr(self._nesting, "depth", 0) > 0)
        if self._limit is not None and not self._tainted:
            self._tainted = (
                f"process {os.getpid()} was forked while an update was applied, so its copy of the weights may be a "
                "mix of two versions; fork between updates"
            )
        self._limit = None


_gates: WeakSet[Gate] = WeakSet()


def _go_on() -> None:
    for gate in _gates:
        gate._go_on_in_child()


os.register_at_fork(after_in_child=_go_on)
