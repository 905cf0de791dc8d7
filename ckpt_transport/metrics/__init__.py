"""Metrics for Prometheus: what becomes of updates, and what sinks serve. Needs ``ckpt-transport[metrics]``."""

from __future__ import annotations

from ckpt_transport.metrics.exporter import count, export
from ckpt_transport.metrics.prometheus import Metrics

__all__ = ["Metrics", "count", "export"]
