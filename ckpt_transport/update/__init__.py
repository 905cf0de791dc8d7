"""An update has messages, a coordinator that leads it, participants that carry it out, and a report; all are here."""

from ckpt_transport.update.report import Report

__all__ = ["Report"]
