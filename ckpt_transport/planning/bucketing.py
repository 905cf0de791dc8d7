"""Cutting a version into buckets."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_transport.planning.manifest import Manifest
from ckpt_transport.planning.plan import IN_PLACE, Bucket, Piece

ALIGNMENT = 256
"""Buckets start at multiples of this in their extent, so a tensor is as aligned in a slot as in its extent."""


def align_down(offset: int) -> int:
    return offset - offset % ALIGNMENT


def align_up(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def cut(manifest: Manifest, bucket_bytes: int, split_above: int | None) -> list[Bucket]:
    """Buckets of whole tensors, at most ``bucket_bytes`` long where a tensor's size allows, in the order to send them.

    Args:
        manifest: what to cut.
        bucket_bytes: size to aim at, a multiple of 256.
        split_above: tensors that take more than this many bytes in a bucket are cut; None never cuts one.

    Returns:
        Buckets without slots; those of several owners take turns, so that all owners send from the start.
    """
    by_owner: dict[int, list[Bucket]] = {}
    for bucket in _in_memory_order(manifest, bucket_bytes, split_above):
        by_owner.setdefault(manifest.extents[bucket.extent].owner, []).append(bucket)
    longest = max((len(buckets) for buckets in by_owner.values()), default=0)
    return [
        by_owner[owner][turn] for turn in range(longest) for owner in sorted(by_owner) if turn < len(by_owner[owner])
    ]


def _in_memory_order(manifest: Manifest, bucket_bytes: int, split_above: int | None) -> Iterator[Bucket]:
    tensors = manifest.tensors
    order = sorted(range(len(tensors)), key=lambda i: (tensors[i].extent, tensors[i].offset, tensors[i].nbytes))
    extent, start, end = -1, 0, 0
    pieces: list[Piece] = []
    for index in order:
        tensor = tensors[index]
        tensor_end = tensor.offset + tensor.nbytes
        apart = tensor.extent != extent or tensor.offset - end > ALIGNMENT
        if pieces and (apart or tensor_end - start > bucket_bytes):
            yield Bucket(extent, start, end - start, IN_PLACE, IN_PLACE, tuple(pieces))
            pieces = []
        if not pieces:
            extent, start = tensor.extent, align_down(tensor.offset)
        if split_above is not None and tensor_end - start > split_above:
            *whole, (start, last) = _split(index, tensor.offset, tensor.nbytes, start, split_above)
            for piece_start, piece in whole:
                yield Bucket(extent, piece_start, piece.bucket_offset + piece.nbytes, IN_PLACE, IN_PLACE, (piece,))
            pieces = [last]
        else:
            pieces.append(Piece(index, 0, tensor.offset - start, tensor.nbytes))
        end = tensor_end
    if pieces:
        yield Bucket(extent, start, end - start, IN_PLACE, IN_PLACE, tuple(pieces))


def _split(tensor: int, offset: int, nbytes: int, start: int, limit: int) -> Iterator[tuple[int, Piece]]:
    """Pieces of one tensor, each with the start of the bucket it goes into."""
    done = 0
    while done < nbytes:
        into_bucket = offset + done - start
        length = min(limit - into_bucket, nbytes - done)
        yield start, Piece(tensor, done, into_bucket, length)
        done += length
        start += limit
