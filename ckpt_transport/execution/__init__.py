"""Execution runs a plan: it derives one rank's schedule, runs it as a pipeline, and records a timeline."""

from ckpt_transport.execution.applies import Apply
from ckpt_transport.execution.digests import (
    Digests,
    FirstSinkDigests,
    OwnerDigests,
    PromptOwnerDigests,
    SinkDigests,
)
from ckpt_transport.execution.fills import FillMemory, Fills
from ckpt_transport.execution.ledger import Ledger
from ckpt_transport.execution.pipeline import Pipeline
from ckpt_transport.execution.schedule import Lent, LentKind, RankSchedule, RankStep
from ckpt_transport.execution.timeline import StageEvent, draw, now, write_trace
from ckpt_transport.execution.transfers import RouteAttachment

__all__ = [
    "Apply",
    "Digests",
    "FillMemory",
    "Fills",
    "FirstSinkDigests",
    "Ledger",
    "Lent",
    "LentKind",
    "OwnerDigests",
    "Pipeline",
    "PromptOwnerDigests",
    "RankSchedule",
    "RankStep",
    "RouteAttachment",
    "SinkDigests",
    "StageEvent",
    "draw",
    "now",
    "write_trace",
]
