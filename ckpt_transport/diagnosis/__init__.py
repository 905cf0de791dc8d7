"""Looks at this machine, and at the members of a fleet, for what keeps updates from working or makes them slow."""

from __future__ import annotations

from ckpt_transport.diagnosis.finding import Finding, Severity
from ckpt_transport.diagnosis.fleet import look_at_engines, look_at_sinks
from ckpt_transport.diagnosis.machine import look_at_machine

__all__ = ["Finding", "Severity", "look_at_engines", "look_at_machine", "look_at_sinks"]
