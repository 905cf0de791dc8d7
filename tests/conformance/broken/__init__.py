"""Transports that break one promise each, as small subclasses of ones that keep them all."""

from tests.conformance.broken.cases import CASES, LONG_CASES, Case

__all__ = ["CASES", "LONG_CASES", "Case"]
