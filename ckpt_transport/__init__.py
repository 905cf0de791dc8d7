"""Put new weights into running LLM inference engines, over whatever moves bytes best between them.

* :class:`ParameterServer` holds versions of a model and brings them to sinks.
* :class:`Sink` makes an :class:`Engine` updatable; the adapters (``ckpt_transport_torch``, ...) bring engines.
* :class:`Holder` keeps a version for engines that come later, and :class:`Joiner` brings them to it.
* Transports are plugins: see :mod:`ckpt_transport.transports`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckpt_transport.checkpoint import StoredVersion
    from ckpt_transport.config import Config
    from ckpt_transport.engine import Engine, Gate, LoadedBucket, LoadedPiece
    from ckpt_transport.errors import (
        BudgetError,
        CheckpointError,
        CkptTransportError,
        ConfigError,
        ControlError,
        CoverageError,
        EndpointBrokenError,
        EndpointClosedError,
        EngineError,
        JoinError,
        MessageError,
        PeerLostError,
        PlanError,
        PlanMismatchError,
        PluginError,
        RecordingError,
        RegionBusyError,
        RegistrationError,
        SharedMemoryError,
        StoreError,
        TaintedError,
        TransferError,
        TransferTimeout,
        TransportConflictError,
        TransportError,
        TransportNotFoundError,
        TransportUnavailableError,
        UnwritableError,
        UpdateAbortedError,
        UpdateError,
        UsageError,
    )
    from ckpt_transport.service import AddressFile, Holder, HolderAddress, Joiner, ParameterServer, Sink, ask_version
    from ckpt_transport.service.fleet import FleetReport
    from ckpt_transport.service.questions import ServedVersion
    from ckpt_transport.update import Report

__all__ = [
    "AddressFile",
    "BudgetError",
    "CheckpointError",
    "CkptTransportError",
    "Config",
    "ConfigError",
    "ControlError",
    "CoverageError",
    "EndpointBrokenError",
    "EndpointClosedError",
    "Engine",
    "EngineError",
    "FleetReport",
    "Gate",
    "Holder",
    "HolderAddress",
    "JoinError",
    "Joiner",
    "LoadedBucket",
    "LoadedPiece",
    "MessageError",
    "ParameterServer",
    "PeerLostError",
    "PlanError",
    "PlanMismatchError",
    "PluginError",
    "RecordingError",
    "RegionBusyError",
    "RegistrationError",
    "Report",
    "ServedVersion",
    "SharedMemoryError",
    "Sink",
    "StoreError",
    "StoredVersion",
    "TaintedError",
    "TransferError",
    "TransferTimeout",
    "TransportConflictError",
    "TransportError",
    "TransportNotFoundError",
    "TransportUnavailableError",
    "UnwritableError",
    "UpdateAbortedError",
    "UpdateError",
    "UsageError",
    "ask_version",
]

_HOMES = {
    **dict.fromkeys((name for name in __all__ if name.endswith(("Error", "Timeout"))), "errors"),
    "Config": "config",
    **dict.fromkeys(("Engine", "Gate", "LoadedBucket", "LoadedPiece"), "engine"),
    "FleetReport": "service.fleet",
    "Report": "update",
    "ServedVersion": "service.questions",
    "StoredVersion": "checkpoint",
}


def __getattr__(name: str) -> Any:
    """Load what users import when they ask for it: torch takes a second, in which a command must be interruptible."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"ckpt_transport.{_HOMES.get(name, 'service')}")
    value = globals()[name] = getattr(home, name)
    return value
