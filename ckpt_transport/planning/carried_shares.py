"""Carriers are for certain shares of a version, so that a sink with one of these is sent what has changed in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from ckpt_transport.errors import DeltaRefusedError
from ckpt_transport.planning.values.manifest import Delta, TensorSpec
from ckpt_transport.planning.values.share import Share, digest_of
from ckpt_transport.planning.values.topology import EVERYTHING, Topology


def name_of_share(share: Share) -> str:
    """By which carriers name a share of a version, in hexadecimal: equal shares have equal names, others do not."""
    return hashlib.sha256(msgspec.msgpack.encode(share)).hexdigest()


def carried_share(deltas: Sequence[Delta], specs: Sequence[TensorSpec], share: Share | None) -> Share | None:
    """The carriers that a sink needs, as a share of the version that consists of carriers; None for all.

    Args:
        deltas: of all sources.
        specs: of all carriers.
        share: what of the version itself the sink serves; None for everything.

    Raises:
        DeltaRefusedError: the sources have not heard of this share.
    """
    if share is None:
        return None
    name = name_of_share(share)
    if any(delta.shares and name not in delta.shares for delta in deltas):
        raise DeltaRefusedError("a sink serves another part of the version than it said when what differs was found")
    wanted = {
        carrier.name
        for delta in deltas
        for carrier in delta.carriers
        if not delta.shares or delta.shares.index(name) in carrier.shares
    }
    ranges = sorted((spec.name, 0, spec.nbytes) for spec in specs if spec.name in wanted)
    return Share(digest_of(specs), tuple(ranges)) if len(ranges) < len(specs) else None


def topology_for(topology: Topology, deltas: Sequence[Delta], specs: Sequence[TensorSpec]) -> Topology:
    """A topology in which each sink has its share of carriers instead of its share of the version.

    Raises: as :func:`carried_share`.
    """
    shares = [carried_share(deltas, specs, share) for share in topology.shares]
    found = list(dict.fromkeys(share for share in shares if share is not None))
    numbers = [EVERYTHING if share is None else found.index(share) for share in shares]
    participants = tuple(
        msgspec.structs.replace(rank, share=EVERYTHING if rank.share == EVERYTHING else numbers[rank.share])
        for rank in topology.participants
    )
    return Topology(participants, tuple(found))
