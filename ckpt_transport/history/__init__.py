"""History keeps what became of updates in a file: one line of JSON for each, which a dashboard shows later."""

from __future__ import annotations

from ckpt_transport.history.entries import PastUpdate, StageRow, Timeline
from ckpt_transport.history.reader import History
from ckpt_transport.history.timeline import timeline_of
from ckpt_transport.history.writer import check_history, keep

__all__ = ["History", "PastUpdate", "StageRow", "Timeline", "check_history", "keep", "timeline_of"]
