"""The way into an inference engine: what an :class:`Engine` does, what it is given, and its :class:`Gate`."""

from ckpt_transport.engine.engine import Engine
from ckpt_transport.engine.gate import Gate
from ckpt_transport.engine.loaded_bucket import LoadedBucket, LoadedPiece
from ckpt_transport.engine.releases import ReleaseRange, release_of
from ckpt_transport.engine.served_digest import (
    ServedSums,
    can_be_kept,
    digest_beside_whole,
    digest_of_elements,
    digest_of_served,
)
from ckpt_transport.engine.served_elements import ServedElements
from ckpt_transport.engine.served_share import share_of_served
from ckpt_transport.engine.shadows import (
    KnownShadowNeeds,
    MakeShadows,
    ShadowNeeds,
    on_device,
    why_not_apart,
    why_not_contiguous,
)
from ckpt_transport.engine.staged_tensors import StagedTensors
from ckpt_transport.engine.staging import StagingArea, place_of
from ckpt_transport.engine.stream_engine import StreamEngine

__all__ = [
    "Engine",
    "Gate",
    "KnownShadowNeeds",
    "LoadedBucket",
    "LoadedPiece",
    "MakeShadows",
    "ReleaseRange",
    "ServedElements",
    "ServedSums",
    "ShadowNeeds",
    "StagedTensors",
    "StagingArea",
    "StreamEngine",
    "can_be_kept",
    "digest_beside_whole",
    "digest_of_elements",
    "digest_of_served",
    "on_device",
    "place_of",
    "release_of",
    "share_of_served",
    "why_not_apart",
    "why_not_contiguous",
]
