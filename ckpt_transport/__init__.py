"""Put new weights into running LLM inference engines, over whatever moves bytes best between them.

* :class:`ParameterServer` holds versions of a model and brings them to sinks.
* :class:`Sink` makes an :class:`Engine` updatable; the adapters (``ckpt_transport_torch``, ...) bring engines.
* :class:`Holder` keeps a version for engines that come later, and :class:`Joiner` brings them to it.
* Transports are plugins: see :mod:`ckpt_transport.transports`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ckpt_transport import errors

if TYPE_CHECKING:
    __version__: str
    from ckpt_transport.checkpoint import Mapping as Mapping
    from ckpt_transport.checkpoint import StoredVersion as StoredVersion
    from ckpt_transport.checkpoint import TensorShard as TensorShard
    from ckpt_transport.checkpoint import rules as rules
    from ckpt_transport.config import Config as Config
    from ckpt_transport.engine import Engine as Engine
    from ckpt_transport.engine import Gate as Gate
    from ckpt_transport.engine import LoadedBucket as LoadedBucket
    from ckpt_transport.engine import LoadedPiece as LoadedPiece
    from ckpt_transport.engine import StreamEngine as StreamEngine
    from ckpt_transport.errors import *  # noqa: F403
    from ckpt_transport.service import AddressFile as AddressFile
    from ckpt_transport.service import AwaitedJob as AwaitedJob
    from ckpt_transport.service import Holder as Holder
    from ckpt_transport.service import HolderAddress as HolderAddress
    from ckpt_transport.service import Joiner as Joiner
    from ckpt_transport.service import ParameterServer as ParameterServer
    from ckpt_transport.service import Sink as Sink
    from ckpt_transport.service import StagedJob as StagedJob
    from ckpt_transport.service import ask_version as ask_version
    from ckpt_transport.service.fleet import FleetReport as FleetReport
    from ckpt_transport.service.questions import ServedVersion as ServedVersion
    from ckpt_transport.service.sink_handles import AnySink as AnySink
    from ckpt_transport.service.sink_handles import SinkHandle as SinkHandle
    from ckpt_transport.update import Report as Report

_HOMES = {
    "checkpoint": "Mapping StoredVersion TensorShard rules",
    "config": "Config",
    "engine": "Engine Gate LoadedBucket LoadedPiece StreamEngine",
    "errors": " ".join(name for name, value in vars(errors).items() if isinstance(value, type)),
    "service": "AddressFile AwaitedJob Holder HolderAddress Joiner ParameterServer Sink StagedJob ask_version",
    "service.fleet": "FleetReport",
    "service.questions": "ServedVersion",
    "service.sink_handles": "AnySink SinkHandle",
    "update": "Report",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    """Load what users import when they ask for it: torch takes a second, in which a command must be interruptible."""
    if name == "__version__":
        return importlib.import_module("ckpt_transport.release").RELEASE
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"ckpt_transport.{_HOME_OF[name]}"), name)
    return value
