"""Updates, from both sides: :class:`ParameterServer` brings versions, :class:`Sink` takes them into an engine."""

from ckpt_transport.session.engine import Engine, LoadedBucket, LoadedPiece
from ckpt_transport.session.gate import Gate
from ckpt_transport.session.parameter_server import ParameterServer
from ckpt_transport.session.query import ask_version
from ckpt_transport.session.report import Report
from ckpt_transport.session.sink import Sink

__all__ = ["Engine", "Gate", "LoadedBucket", "LoadedPiece", "ParameterServer", "Report", "Sink", "ask_version"]
