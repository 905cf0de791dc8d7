"""An outline is the manifest that a checkpoint will have once it is registered; it is made from headers alone."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_transport.checkpoint.checkpoint import CheckpointFile, shares
from ckpt_transport.checkpoint.pool import lay_out
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import Extent, Manifest, PlacedTensor, spread


def outline(version: str, files: Sequence[CheckpointFile], sources: int, kind: MemoryKind) -> Manifest:
    """Find what ``sources`` source ranks will hold of a checkpoint, each in one pool of ``kind`` memory."""
    shards = [_shard(version, own, rank, kind) for rank, own in enumerate(shares(files, sources))]
    return spread(version, shards, {}, (), whole=False)


def _shard(version: str, files: Sequence[CheckpointFile], rank: int, kind: MemoryKind) -> Manifest:
    entries = [entry for file in files for entry in file.tensors]
    offsets, nbytes = lay_out(entry.nbytes for entry in entries)
    placed = [PlacedTensor(entry.spec, 0, offset, entry.nbytes) for entry, offset in zip(entries, offsets, strict=True)]
    return Manifest(version, (Extent(rank, nbytes, kind),) if placed else (), tuple(placed))
