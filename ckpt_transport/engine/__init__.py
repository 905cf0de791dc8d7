"""The way into an inference engine: what an :class:`Engine` does, what it is given, and its :class:`Gate`."""

from ckpt_transport.engine.engine import Engine, LoadedBucket, LoadedPiece
from ckpt_transport.engine.gate import Gate

__all__ = ["Engine", "Gate", "LoadedBucket", "LoadedPiece"]
