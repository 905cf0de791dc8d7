"""Events become spans: an update with its phases where it is led, the steps of each member where it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache

from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    TracerProvider,
    get_current_span,
    get_tracer,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from ckpt_transport.events import Event, StepEnded, UpdateBegan, UpdateEnded, observe, trace_by
from ckpt_transport.release import RELEASE

NAME = "ckpt_transport"
HEADER = "traceparent"
_propagator = TraceContextTextMapPropagator()


@cache
def trace() -> None:
    """Make spans of the updates of this process from now on, by the tracer provider that is set for it."""
    Spans().begin()


class Spans:
    """Makes spans of what it is told.

    Args:
        provider: makes the tracer; by default the one that is set for the process.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer = get_tracer(NAME, RELEASE, tracer_provider=provider)
        self._updates: dict[str, Span] = {}
        self._lock = threading.Lock()

    def begin(self) -> Callable[[], None]:
        """Be told of what happens in this process, and let members of other processes know the trace.

        Returns: what ends that.
        """
        ends = observe(self), trace_by(self.traceparent)

        def stop() -> None:
            for end in ends:
                end()

        return stop

    def traceparent(self, update: str) -> str:
        """What says to other processes which span they are part of; empty for an update that has none."""
        with self._lock:
            span = self._updates.get(update)
        carrier: dict[str, str] = {}
        if span is not None:
            _propagator.inject(carrier, set_span_in_context(span))
        return carrier.get(HEADER, "")

    def __call__(self, event: Event) -> None:
        """Make a span of an event; an observer for :func:`ckpt_transport.events.observe`."""
        match event:
            case UpdateBegan():
                self._begin(event)
            case UpdateEnded():
                self._end(event)
            case StepEnded():
                self._step(event)

    def _begin(self, began: UpdateBegan) -> None:
        """The span is a child of the one that is current in the thread that leads."""
        span = self._tracer.start_span(
            f"{NAME}.{began.kind}",
            kind=SpanKind.PRODUCER,
            attributes=_named(update=began.update, version=began.version),
            start_time=_ns(began.at),
        )
        with self._lock:
            self._updates[began.update] = span

    def _end(self, ended: UpdateEnded) -> None:
        with self._lock:
            span = self._updates.pop(ended.update, None)
        if span is None:
            return
        parent, start = set_span_in_context(span), ended.at - ended.seconds
        for phase, seconds in ended.phases.items():
            child = self._tracer.start_span(phase, parent, start_time=_ns(start))
            start += seconds
            child.end(_ns(start))
        span.set_attributes(
            _named(
                outcome=ended.outcome,
                bytes=ended.nbytes,
                staged=ended.staged,
                transports=ended.transports,
                lost=ended.lost,
            )
        )
        span.set_status(Status(StatusCode.OK) if not ended.reason else Status(StatusCode.ERROR, ended.reason))
        span.end(_ns(ended.at))

    def _step(self, step: StepEnded) -> None:
        parent = _propagator.extract({HEADER: step.trace})
        if not get_current_span(parent).get_span_context().is_valid:
            return
        span = self._tracer.start_span(
            step.step,
            parent,
            kind=SpanKind.CONSUMER,
            attributes=_named(update=step.update, member=step.member),
            start_time=_ns(step.at - step.seconds),
        )
        if step.error:
            span.set_status(Status(StatusCode.ERROR, step.error))
        span.end(_ns(step.at))


def _named(**attributes: AttributeValue) -> dict[str, AttributeValue]:
    return {f"{NAME}.{name}": value for name, value in attributes.items()}


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
