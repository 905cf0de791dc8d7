"""A trace crosses processes: whoever leads an update sends a ``traceparent`` with its orders, if it has one.

Format: W3C Trace Context (https://www.w3.org/TR/trace-context/#traceparent-header).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ckpt_transport.events.context import about
from ckpt_transport.events.observers import tell
from ckpt_transport.events.values import StepEnded
from ckpt_transport.reasons import named_reason

Tracer = Callable[[str], str]
_tracers: dict[object, Tracer] = {}


def trace_by(tracer: Tracer) -> Callable[[], None]:
    """Have ``tracer`` say the ``traceparent`` of updates that this process leads, until the result is called.

    It is given the name of an update, and returns nothing where it does not trace that.
    """
    key = object()
    _tracers[key] = tracer

    def stop() -> None:
        _tracers.pop(key, None)

    return stop


def trace_of(update: str) -> str:
    """The ``traceparent`` of an update that this process leads; empty when nobody traces it."""
    return next((trace for tracer in tuple(_tracers.values()) if (trace := tracer(update))), "")


@contextmanager
def step(update: str, name: str, trace: str) -> Iterator[None]:
    """The block follows an order; whoever observes is told when it has ended, where the update is traced."""
    if not trace:
        yield
        return
    began, error = time.time(), ""
    try:
        yield
    except BaseException as raised:
        error = named_reason(raised)
        raise
    finally:
        ended = time.time()
        tell(
            StepEnded(
                at=ended, update=update, member=about.member, step=name, seconds=ended - began, trace=trace, error=error
            )
        )
