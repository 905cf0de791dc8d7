"""Says what is wrong when bytes differ: which tensors they are of, and on which way they came."""

from __future__ import annotations

from ckpt_transport.planning import Plan, StageKind

NAMED = 3
"""So many tensors of a bucket are named in an error."""


def differing(plan: Plan, number: int, rank: int) -> str:
    """What is wrong when the digest of a bucket differs at ``rank``."""
    bucket = plan.buckets[number]
    names = list(dict.fromkeys(plan.manifest.tensors[piece.tensor].spec.name for piece in bucket.pieces))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    way: list[str] = []
    at, owner = rank, plan.owner(bucket)
    while at != owner:
        leg = next(
            leg
            for stage in plan.stages.block(number)
            if stage.kind is StageKind.TRANSFER
            for leg in plan.hops[stage.hop].legs
            if at in leg.receivers
        )
        way.insert(0, f"by '{plan.routes[leg.route].transport}' from rank {leg.sender} to rank {at}")
        at = leg.sender
    return (
        f"bytes of {', '.join(names[:NAMED])}{more} (bucket {number}) that are not those of source rank {owner}: "
        f"their digests differ. They came {', then '.join(way)}. Either that transport gives wrong bytes "
        "(python -m ckpt_transport.testing tries it), or the version's memory or files were changed during the update"
    )
