"""Put new weights into running LLM inference engines, over whatever moves bytes best between them.

* :class:`ParameterServer` holds versions of a model and brings them to sinks.
* :class:`Sink` makes an :class:`Engine` updatable; the adapters (``ckpt_transport_torch``, ...) bring engines.
* :class:`Holder` keeps a version for engines that come later, and :class:`Joiner` brings them to it.
* Transports are plugins: see :mod:`ckpt_transport.transport` for the interface and :mod:`ckpt_transport.registry`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckpt_transport.config import Config
    from ckpt_transport.session import (
        Engine,
        Gate,
        Holder,
        HolderAddress,
        Joiner,
        LoadedBucket,
        LoadedPiece,
        Metas,
        ParameterServer,
        Report,
        Sink,
        ask_version,
    )

__all__ = [
    "Config",
    "Engine",
    "Gate",
    "Holder",
    "HolderAddress",
    "Joiner",
    "LoadedBucket",
    "LoadedPiece",
    "Metas",
    "ParameterServer",
    "Report",
    "Sink",
    "ask_version",
]


def __getattr__(name: str) -> Any:
    """Load what users import when they ask for it: torch takes a second, in which a command must be interruptible."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "ckpt_transport.config" if name == "Config" else "ckpt_transport.session"
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value
