"""Spans for OpenTelemetry: an update from trainer to engines is one trace. Needs ``ckpt-transport[opentelemetry]``."""

from __future__ import annotations

from ckpt_transport.tracing.spans import Spans, trace

__all__ = ["Spans", "trace"]
