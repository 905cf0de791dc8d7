"""Interrupts a call at each of its steps, as a signal may."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


class Interrupter:
    """Raises KeyboardInterrupt when a call has made so many steps.

    A step is what Python looks for signals at: a function in Python begins, or one in C returns.

    Args:
        inside: counts only steps of code whose file has this in its name, and those of contexts that it enters.

    Attributes:
        steps: that were made.
        place: the step that was interrupted; empty where there was none.
    """

    def __init__(self, inside: str = "") -> None:
        self.steps, self.place = 0, ""
        self._inside, self._at = inside, 0

    def run(self, call: Callable[[], Any], at: int) -> None:
        """Call, and interrupt at that step, counted from 1; at none with 0.

        Raises: what comes of it.
        """
        self.steps, self.place, self._at = 0, "", at
        sys.setprofile(self._step)
        try:
            call()
        finally:
            sys.setprofile(None)

    def _step(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        # A generator is also called to end it, where nothing can be raised.
        begins = event == "call" and not code.co_flags & inspect.CO_GENERATOR
        if not (begins or event == "c_return") or not self._is_counted(frame):
            return
        self.steps += 1
        if self.steps == self._at:
            self.place = f"{event} in {code.co_name}, {code.co_filename}:{frame.f_lineno}"
            raise KeyboardInterrupt

    def _is_counted(self, frame: FrameType | None) -> bool:
        while frame is not None and frame.f_code.co_filename == contextlib.__file__:
            frame = frame.f_back
        return frame is not None and self._inside in frame.f_code.co_filename
