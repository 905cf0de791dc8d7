"""A warm-up does, while an engine serves, what its first update would do."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence

from ckpt_transport.engine.engine import Engine
from ckpt_transport.planning import TensorSpec
from ckpt_transport.reasons import named_reason

logger = logging.getLogger(__name__)


class WarmUp:
    """Runs the steps of a warm-up on a thread of its own.

    Who leads an update does not wait for all of them: it waits for the one that runs, which it would need itself, and
    the others are left to the update.

    Args:
        label: what people call the engine.
        steps: makes the steps. Each is done when the next is asked for, and is told in a few words. What says nothing
            is told with the next.
    """

    def __init__(self, label: str, steps: Callable[[], Generator[str]]) -> None:
        self._label, self._steps = label, steps
        self._done: list[str] = []
        self._problem = ""
        self._left, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="ckpt-transport-warm-up", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self._ended.is_set()

    @property
    def said(self) -> str:
        """What it has done, and how it ended, in words."""
        if self._problem:
            return f"could not warm up: {self._problem}"
        if not self.ended:
            return f"warms up: {', '.join(self._done) or 'nothing is done yet'}"
        done = ", ".join(self._done) or "there was nothing to do"
        return f"warmed up until an update came: {done}" if self._left.is_set() else f"warmed up: {done}"

    def leave(self, timeout: float | None = None) -> None:
        """Have it end after the step that runs, and wait for that."""
        if not self.ended:
            self._left.set()
            self._ended.wait(timeout)

    def _run(self) -> None:
        began = time.monotonic()
        try:
            steps = self._steps()
            try:
                for step in steps:
                    if step:
                        self._done.append(f"{step} ({time.monotonic() - began:.1f} s)")
                        began = time.monotonic()
                    if self._left.is_set():
                        return
            finally:
                steps.close()
        except Exception as error:
            self._problem = named_reason(error)
            logger.warning("%s could not warm up, which the first update does then", self._label, exc_info=error)
        else:
            self._left.clear()
            logger.info("%s has warmed up: %s", self._label, ", ".join(self._done))
        finally:
            self._ended.set()


class WarmUps:
    """Warms an engine up when its sink has nothing else to do.

    Args:
        engine: it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asked: deque[Sequence[TensorSpec]] = deque(maxlen=1)
        self._last: WarmUp | None = None

    @property
    def said(self) -> str:
        """What the last one has done, in words; empty when there was none."""
        return "" if self._last is None else self._last.said

    @property
    def has_spoiled(self) -> bool:
        """Whether one has ended that has changed what is served."""
        return self._last is not None and self._last.ended and self._engine.spoiled

    def ask(self, specs: Sequence[TensorSpec]) -> None:
        """Have one begin at the next :meth:`begin_asked`, instead of what was asked for before. From any thread."""
        self._asked.append(specs)

    def begin_asked(self) -> None:
        """Begin one that was asked for."""
        if self._asked:
            specs = self._asked.pop()
            self.leave()
            self._last = WarmUp(self._engine.label, lambda: self._engine.warm_up(specs))

    def leave(self, timeout: float | None = None) -> None:
        """No step of a warm-up runs from now on."""
        self._asked.clear()
        if self._last is not None:
            self._last.leave(timeout)
