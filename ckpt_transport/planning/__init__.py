"""Plans say what an update will do before it does it. Planning is pure: it needs no process, socket or plugin.

:func:`plan` makes a :class:`Plan`, :func:`verify` proves it, :func:`verify_part` proves what one rank does of it, and
:func:`explain` tells a person about it.
"""

from ckpt_transport.planning.assignment import spread
from ckpt_transport.planning.chain_broadcast import transports_of
from ckpt_transport.planning.explain import explain
from ckpt_transport.planning.planner import plan
from ckpt_transport.planning.values.byte_ranges import ByteRange, ByteRangeSet
from ckpt_transport.planning.values.manifest import (
    Conversion,
    Extent,
    Manifest,
    PlacedTensor,
    TensorRange,
    TensorSpec,
    merge,
)
from ckpt_transport.planning.values.plan import IN_PLACE, Bucket, Piece, Plan, Ring, RingUse, Stage, StageKind
from ckpt_transport.planning.values.settings import AUTO, Settings
from ckpt_transport.planning.values.share import Share, digest_of
from ckpt_transport.planning.values.topology import EVERYTHING, RankInfo, Role, Topology
from ckpt_transport.planning.verify import verify, verify_part

__all__ = [
    "AUTO",
    "EVERYTHING",
    "IN_PLACE",
    "Bucket",
    "ByteRange",
    "ByteRangeSet",
    "Conversion",
    "Extent",
    "Manifest",
    "Piece",
    "PlacedTensor",
    "Plan",
    "RankInfo",
    "Ring",
    "RingUse",
    "Role",
    "Settings",
    "Share",
    "Stage",
    "StageKind",
    "TensorRange",
    "TensorSpec",
    "Topology",
    "digest_of",
    "explain",
    "merge",
    "plan",
    "spread",
    "transports_of",
    "verify",
    "verify_part",
]
