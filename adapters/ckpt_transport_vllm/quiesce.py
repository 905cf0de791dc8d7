"""Keeps forward passes from weights that change, in the extension and in the native engine."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from ckpt_transport import Gate

STEPS = ("execute_model", "sample_tokens", "execute_dummy_batch")
"""Methods of a vLLM worker that run a model. All ranks of an engine are asked for the same ones in the same order."""


class Quiesce(Protocol):
    """Holds forward passes; see :class:`ckpt_transport.Engine`, whose methods of these names mean the same."""

    def hold(self) -> int: ...
    def advance(self, forwards: int, timeout: float) -> None: ...
    def resume(self) -> float: ...
    def taint(self, reason: str) -> None: ...


class WorkerGate(Gate):
    """Every step of a vLLM worker that runs a model is a pass through this gate.

    A tainted gate keeps passes waiting instead of refusing them: an exception in a step ends the engine's process.
    """

    def __init__(self, worker: Any) -> None:
        super().__init__()
        for name in STEPS:
            method = getattr(worker, name, None)
            if method is not None:
                setattr(worker, name, self._through(method))

    def _through(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def gated(*args: Any, **kwargs: Any) -> Any:
            if _has_no_tokens(*args):
                return method(*args, **kwargs)
            return self.run(method, *args, **kwargs)

        return gated

    def taint(self, reason: str) -> None:
        """Stay held, until an update succeeds."""


def _has_no_tokens(step: Any = None, *_: Any) -> bool:
    """Whether a step only tells the worker which requests have ended, which vLLM does while it is paused, too.

    Such a step reads no weights. An engine that waited in one would answer nobody until an update succeeds.
    """
    return bool(getattr(step, "total_num_scheduled_tokens", None) == 0)


class LentThread:
    """The thread of vLLM's worker, which it lends for as long as an update takes, so that no step can run.

    The worker's thread calls :meth:`lend`; the sink's thread calls the other methods.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._lent = False
        self._held_since: float | None = None

    def lend(self, patience: float) -> None:
        """Wait for an update to begin, at most ``patience`` seconds, and then for its end."""
        with self._condition:
            self._lent = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._held_since is not None, patience)
            self._condition.wait_for(lambda: self._held_since is None)
            self._lent = False

    def hold(self) -> int:
        with self._condition:
            self._held_since = time.monotonic()
            self._condition.notify_all()
        return 0

    def advance(self, forwards: int, timeout: float) -> None:
        """Wait until vLLM has lent its thread. Forward passes cannot be counted here.

        Raises:
            TimeoutError: vLLM did not call ``update_weights`` in time.
        """
        with self._condition:
            if not self._condition.wait_for(lambda: self._lent, timeout):
                raise TimeoutError(f"vLLM was not asked to update_weights within {timeout:g} s")

    def resume(self) -> float:
        with self._condition:
            held = 0.0 if self._held_since is None else time.monotonic() - self._held_since
            self._held_since = None
            self._condition.notify_all()
        return held

    def taint(self, reason: str) -> None:
        """Give vLLM its thread back. It is paused, and must stay so."""
        self.resume()
