"""Running a plan: one rank's program, the pipeline that runs it, and the timeline of what happened."""

from ckpt_transport.execution.applies import Apply
from ckpt_transport.execution.digests import (
    Channel,
    Digests,
    FirstSinkDigests,
    OwnerDigests,
    PromptOwnerDigests,
    SinkDigests,
)
from ckpt_transport.execution.fills import Sources
from ckpt_transport.execution.ledger import Ledger
from ckpt_transport.execution.pipeline import Pipeline
from ckpt_transport.execution.program import Lent, Memory, Program, Step
from ckpt_transport.execution.timeline import Event, draw, now, write_trace
from ckpt_transport.execution.transfers import RouteAttachment

__all__ = [
    "Apply",
    "Channel",
    "Digests",
    "Event",
    "FirstSinkDigests",
    "Ledger",
    "Lent",
    "Memory",
    "OwnerDigests",
    "Pipeline",
    "Program",
    "PromptOwnerDigests",
    "RouteAttachment",
    "SinkDigests",
    "Sources",
    "Step",
    "draw",
    "now",
    "write_trace",
]
