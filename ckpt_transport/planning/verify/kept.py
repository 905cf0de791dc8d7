"""The part of the proof that is about loaders: how much one keeps that holds on to tensors until it has all of a layer.

The planner counts the same with code of its own (:mod:`ckpt_transport.planning.loader_memory`), so a mistake there is
found here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate

from ckpt_transport.planning.values.manifest import Manifest
from ckpt_transport.planning.values.plan import IN_PLACE, Bucket
from ckpt_transport.planning.values.share import Share

_NUMBERED = re.compile(r"(?:[^.]*\.)*?\d+(?=\.|$)")
"""The name of a tensor up to the first part that is a number."""


def most_kept(manifest: Manifest, buckets: Sequence[Bucket], share: Share | None) -> int:
    """The most bytes that a loader keeps at once when ``buckets`` come in this order.

    A layer is kept until the last bucket that holds a piece of it has been applied. What the sink had before counts
    from the beginning, and what is read in place does not count.

    Args:
        manifest: the version that the buckets are of.
        buckets: those that come to the sink.
        share: what the sink needs; None for everything.
    """
    layers = [_layer(tensor.spec.name) for tensor in manifest.tensors]
    last = {layers[piece.tensor]: number for number, bucket in enumerate(buckets) for piece in bucket.pieces}
    changes = [0] * (len(buckets) + 1)

    def keep(layer: str, nbytes: int, since: int) -> None:
        changes[since] += nbytes
        changes[last[layer] + 1] -= nbytes

    for present in manifest.present:
        if (layer := _layer(present.spec.name)) in last:
            keep(layer, _needed(share, present.spec.name, present.start, present.nbytes), 0)
    for number, bucket in enumerate(buckets):
        if (bucket.fill_slot, bucket.slot) != (IN_PLACE, IN_PLACE):
            for piece in bucket.pieces:
                keep(layers[piece.tensor], piece.nbytes, number)
    return max(accumulate(changes))


def _layer(name: str) -> str:
    """The layer of a tensor; its module, where no part of its name is a number."""
    numbered = _NUMBERED.match(name)
    return numbered[0] if numbered else name.rpartition(".")[0] or name


def _needed(share: Share | None, name: str, start: int, nbytes: int) -> int:
    """How many of ``nbytes`` bytes of a tensor, from ``start`` on, a sink needs."""
    if share is None:
        return nbytes
    ranges = ((low, low + length) for tensor, low, length in share.ranges if tensor == name)
    return _overlap(ranges, start, start + nbytes)


def _overlap(ranges: Iterable[tuple[int, int]], start: int, end: int) -> int:
    """How many bytes from ``start`` to ``end`` lie in a range; each counts once."""
    found = 0
    for low, high in sorted(ranges):
        first, last = max(low, start), min(high, end)
        found += max(last - first, 0)
        start = max(start, last)
    return found
