"""Updates, from both sides: :class:`ParameterServer` brings versions, :class:`Sink` takes them into an engine.

:class:`Holder` keeps a version for engines that come later, and :class:`Joiner` brings them to it.
"""

from ckpt_transport.session.engine import Engine, LoadedBucket, LoadedPiece
from ckpt_transport.session.gate import Gate
from ckpt_transport.session.holder import Holder
from ckpt_transport.session.joiner import Joiner
from ckpt_transport.session.metas import HolderAddress, Metas
from ckpt_transport.session.parameter_server import ParameterServer
from ckpt_transport.session.query import ask_version
from ckpt_transport.session.report import Report
from ckpt_transport.session.sink import Sink

__all__ = [
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
