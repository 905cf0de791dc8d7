"""Log lines for people, or JSON for programs: one line for each event, with its update and its member."""

from __future__ import annotations

from ckpt_transport.logs.formats import JsonLines, TextLines
from ckpt_transport.logs.handler import write_logs

__all__ = ["JsonLines", "TextLines", "write_logs"]
