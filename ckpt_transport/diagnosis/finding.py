"""A finding is one thing that was looked at, and what helps where it is not as it should be."""

from __future__ import annotations

import enum

import msgspec


class Severity(enum.StrEnum):
    """Says how much a finding matters.

    OK is as it should be. NOTE is worth knowing, as a transport that cannot run here. WARNING makes updates slow or
    fail in some fleets. PROBLEM makes them fail here.
    """

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(msgspec.Struct, frozen=True):
    """Attributes:
    topic: what was looked at, as ``/dev/shm``.
    severity: how much it matters.
    said: what was found, in words.
    cure: what to do about it; empty where nothing is to be done.
    """

    topic: str
    severity: Severity
    said: str
    cure: str = ""
