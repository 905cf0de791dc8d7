"""Tests of transports whose library may be missing: they are skipped with the transport's own reason."""

from __future__ import annotations

import pytest
from _pytest.mark import ParameterSet

from ckpt_transport.transports import registry


def where_available(name: str) -> ParameterSet:
    """A parameter that is the name of a transport."""
    state = registry.available(name)
    reason = f"{name}: {state.reason}; {state.hint}"
    return pytest.param(name, id=name, marks=pytest.mark.skipif(not state.ok, reason=reason))
