"""Some loaders hold on to tensors until they have all of a layer; the planner counts how much memory that takes.

Loaders that fuse tensors (``q_proj``, ``k_proj`` and ``v_proj`` into one parameter, experts into one) may need all of
them before they can begin. Which ones belong together only the loader knows, but never tensors of two layers: so a
layer, the name up to its first number, is taken for the unit. That is never too little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ckpt_transport.planning.values.byte_ranges import ByteRangeSet
from ckpt_transport.planning.values.manifest import Manifest
from ckpt_transport.planning.values.plan import IN_PLACE, Bucket
from ckpt_transport.planning.values.share import Share


def layer_of(name: str) -> str:
    """The layer a tensor belongs to: ``model.layers.3`` for ``model.layers.3.mlp.up_proj.weight``.

    Tensors outside of any numbered layer belong to their module: ``model.norm`` for ``model.norm.weight``.
    """
    parts = name.split(".")
    for number, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: number + 1])
    return name.rpartition(".")[0] or name


def most_kept(manifest: Manifest, buckets: Sequence[Bucket], share: Share | None) -> int:
    """Count the most bytes that a sink keeps at once when ``buckets`` come in this order.

    Only what passes through a slot is counted: what is read in place need not be copied to be kept. What is present
    of a layer that is not complete, and needed, is kept from the beginning.

    Args:
        manifest: what they are of.
        buckets: those that come to the sink.
        share: what the sink needs; None for everything.
    """
    needed = None if share is None else ByteRangeSet(share.ranges)
    layers = [layer_of(tensor.spec.name) for tensor in manifest.tensors]
    missing = Counter(layers[piece.tensor] for bucket in buckets for piece in bucket.pieces)
    kept: Counter[str] = Counter()
    for held in manifest.present:
        layer = layer_of(held.spec.name)
        if layer in missing:
            unneeded = () if needed is None else needed.missing(held.spec.name, held.start, held.nbytes)
            kept[layer] += held.nbytes - sum(high - low for low, high in unneeded)
    total = most = kept.total()
    for bucket in buckets:
        copied = not bucket.fill_slot == bucket.slot == IN_PLACE
        for piece in bucket.pieces:
            layer = layers[piece.tensor]
            missing[layer] -= 1
            if copied:
                kept[layer] += piece.nbytes
                total += piece.nbytes
        most = max(most, total)
        for layer in {layers[piece.tensor] for piece in bucket.pieces}:
            if not missing[layer]:
                total -= kept.pop(layer, 0)
    return most
