"""What a person may choose about a plan."""

from __future__ import annotations

import msgspec

from ckpt_transport.planning.values.alignment import align_up
from ckpt_transport.planning.values.manifest import Manifest

AUTO = "auto"
ENOUGH_BUCKETS = 64
"""A pipeline fills and drains in about a ring's worth of buckets; with this many in all, that is a few per cent."""
SMALL_BUCKET = 1 << 20
"""Buckets are not made smaller than this for the sake of their number: each costs messages, however short."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a person may choose about a plan.

    Attributes:
        transport: a name, a relay as ``gloo+shm``, a chain broadcast as ``read-chain+shm``, or ``auto``.
        bucket_bytes: largest bucket, and slot, to aim at; a small version is cut finer, so that its stages overlap, and
            between GPUs, and beside passes, it is longer (:mod:`ckpt_transport.planning.bucket_sizes`).
        ring_depth: slots to aim at.
        range_bytes: a sink that needs shorter ranges of a tensor than this, or ranges with shorter gaps, is sent the
            whole tensor: every range costs a bucket.
        digests: owners and sinks compute a digest of each bucket, which reads it once more.
        beside_passes: forward passes run on the sinks meanwhile.
    """

    transport: str = AUTO
    bucket_bytes: int = 64 << 20
    ring_depth: int = 4
    range_bytes: int = SMALL_BUCKET
    digests: bool = False
    beside_passes: bool = False


def bucket_bytes(manifest: Manifest, settings: Settings) -> int:
    """The size of bucket to aim at."""
    finer = max(manifest.nbytes // ENOUGH_BUCKETS, SMALL_BUCKET)
    return align_up(min(settings.bucket_bytes, finer))
