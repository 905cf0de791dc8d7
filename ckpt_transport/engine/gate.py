"""Forward passes go through a gate, so that weights change between them and never inside one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar
from weakref import WeakSet

from ckpt_transport.engine.bell import Bell
from ckpt_transport.errors import TaintedError

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Gate:
    """Counts forward passes and can make the next one wait. Safe to use from any number of threads.

    Tensor-parallel ranks run the same sequence of forward passes, and a pass needs all of them. So that none of them
    waits inside a pass for one that stands before it, they are stopped in two steps: each says how many passes it has
    started (:meth:`hold`), then all are let go up to the largest number (:meth:`advance`).
    """

    def __init__(self) -> None:
        self._lock, self._changed = threading.RLock(), Bell()
        self._started = 0
        self._passing: dict[int, int] = {}
        """Threads that are in a pass, and how deep each is in passes within it."""
        self._limit: int | None = None
        self._held_since = self._passed_at = 0.0
        self._tainted = ""
        _gates.add(self)

    @property
    def started(self) -> int:
        """How many passes have been started."""
        return self._started

    def run(self, forward: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        """Run a forward pass. An interrupt may come at any step, and the gate is free afterwards.

        Returns: what ``forward`` does.

        Raises: as :meth:`enter`, and what ``forward`` raises.
        """
        thread = threading.get_ident()
        if thread in self._passing:
            return forward(*args, **kwargs)
        try:
            self.enter()
            return forward(*args, **kwargs)
        finally:
            self._passing.pop(thread, None)
            self._ended()

    def enter(self) -> None:
        """Begin a forward pass; waits while an update is applied. Passes within a pass go straight through.

        Raises:
            TaintedError: the weights are a mix of two versions.
        """
        thread = threading.get_ident()
        if depth := self._passing.get(thread, 0):
            self._passing[thread] = depth + 1
            return
        while not self._starts(thread):
            self._changed.wait(lambda: bool(self._tainted) or self._lets_through)

    def leave(self) -> None:
        """End a forward pass. Without effect when this thread is in none."""
        thread = threading.get_ident()
        depth = self._passing.get(thread, 0)
        if depth > 1:
            self._passing[thread] = depth - 1
        elif depth:
            self._passing.pop(thread, None)
            self._ended()

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """A forward pass as a ``with`` block. Where Ctrl-C may come in the main thread, :meth:`run` is safer."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def hold(self) -> int:
        """Start no further pass; return how many have been started."""
        with self._lock:
            self._limit = self._started
            self._held_since = time.monotonic()
            return self._started

    def advance(self, forwards: int, timeout: float) -> None:
        """Let passes start until there were ``forwards`` of them, then wait until none runs.

        Raises:
            TimeoutError: that did not happen within ``timeout`` seconds.
        """
        with self._lock:
            self._limit = max(forwards, self._started)
        self._changed.ring()
        if not self._changed.wait(lambda: self._started >= forwards and not self._passing, timeout):
            raise TimeoutError(
                f"forward pass {forwards} did not end within {timeout:g} s ({self._started} started, "
                f"{len(self._passing)} running); do all ranks of the engine run the same forward passes?"
            )

    def wait_while_held(self, timeout: float) -> bool:
        """Wait as long as no pass may start, at most ``timeout`` seconds; return whether one may.

        For loops between two passes that have nothing better to do meanwhile.
        """
        return self._changed.wait(lambda: self._lets_through, timeout)

    def resume(self) -> float:
        """Let passes run again; return for how many seconds none ran: from the end of the last one, if one ran."""
        with self._lock:
            since = max(self._held_since, self._passed_at)
            held = time.monotonic() - since if self._limit is not None else 0.0
            self._limit, self._tainted = None, ""
        self._changed.ring()
        return held

    def taint(self, reason: str) -> None:
        """Refuse every pass from now on, those that wait included."""
        with self._lock:
            self._tainted = reason
        self._changed.ring()

    def _ended(self) -> None:
        self._passed_at = time.monotonic()
        self._changed.ring()

    @property
    def _lets_through(self) -> bool:
        limit = self._limit
        return limit is None or self._started < limit

    def _starts(self, thread: int) -> bool:
        """Whether a pass of that thread has begun."""
        with self._lock:
            if self._tainted:
                raise TaintedError(self._tainted)
            if not self._lets_through:
                return False
            self._passing[thread] = 1
            self._started += 1
            return True

    def _go_on_in_child(self) -> None:
        """After a fork: nobody updates this copy of the weights any more, nor ends what other threads had begun."""
        self._lock, self._changed = threading.RLock(), Bell()
        thread = threading.get_ident()
        self._passing = {thread: self._passing[thread]} if thread in self._passing else {}
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
