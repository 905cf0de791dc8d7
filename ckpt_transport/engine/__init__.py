"""The way into an inference engine: what an :class:`Engine` does, what it is given, and its :class:`Gate`."""

from ckpt_transport.engine.engine import Engine, LoadedBucket, LoadedPiece
from ckpt_transport.engine.gate import Gate
from ckpt_transport.engine.served_digest import digest_of_served
from ckpt_transport.engine.staging import StagingArea, why_not_staged

__all__ = ["Engine", "Gate", "LoadedBucket", "LoadedPiece", "StagingArea", "digest_of_served", "why_not_staged"]
