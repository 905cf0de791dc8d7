"""One update: its messages, the coordinator that leads it, the participants that carry it out, and its report."""

from ckpt_transport.update.report import Report

__all__ = ["Report"]
