"""Libraries of native code, which are imported when a route is opened and not before."""

from __future__ import annotations

import importlib
from typing import Any

from ckpt_transport.errors import TransportError


def native_module(name: str, cure: str) -> Any:
    """Import a native module; Any, because such modules have no type stubs.

    Raises:
        TransportError: it is not installed, or cannot be loaded; ends with ``cure``.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TransportError(f"{name} cannot be loaded: {error}; {cure}") from error
