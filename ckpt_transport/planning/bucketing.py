"""A version is cut into buckets, which are the units that move."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from ckpt_transport.planning.demand import DemandedRange
from ckpt_transport.planning.values.alignment import ALIGNMENT, align_down, align_up
from ckpt_transport.planning.values.manifest import Manifest, PlacedTensor
from ckpt_transport.planning.values.plan import IN_PLACE, Bucket, ExtentRange, Piece
from ckpt_transport.planning.values.topology import Topology


def smallest_slot(manifest: Manifest, topology: Topology) -> int:
    """The fewest bytes that a slot can have: where a loader takes tensors whole it holds the largest."""
    return max(ALIGNMENT, *map(slot_bytes, manifest.tensors)) if topology.whole_tensors else ALIGNMENT


def slot_bytes(tensor: PlacedTensor) -> int:
    """The smallest slot that holds a tensor whole."""
    return align_up(tensor.offset % ALIGNMENT + tensor.nbytes)


def round_robin(manifest: Manifest, buckets: Iterable[Bucket]) -> list[Bucket]:
    """Order buckets so that their owners take turns and all send from the start."""
    by_owner: dict[int, list[Bucket]] = {}
    for bucket in buckets:
        by_owner.setdefault(manifest.extents[bucket.extent].owner, []).append(bucket)
    longest = max((len(own) for own in by_owner.values()), default=0)
    return [
        by_owner[owner][turn] for turn in range(longest) for owner in sorted(by_owner) if turn < len(by_owner[owner])
    ]


def gather(buckets: Sequence[Bucket], bucket_bytes: int) -> list[Bucket]:
    """Join small buckets of one extent and one receiver set into buckets of several ranges.

    A joined bucket takes the place of the last one in it.

    Args:
        buckets: of one range each.
        bucket_bytes: size to aim at.
    """
    found: list[Bucket] = []
    waiting: defaultdict[tuple[int, int], list[Bucket]] = defaultdict(list)
    last = {(bucket.extent, bucket.receiver_set): number for number, bucket in enumerate(buckets)}
    for number, bucket in enumerate(buckets):
        key = bucket.extent, bucket.receiver_set
        if waiting[key] and sum(align_up(each.nbytes) for each in waiting[key]) + bucket.nbytes > bucket_bytes:
            found.append(_joined(waiting.pop(key)))
        waiting[key].append(bucket)
        if last[key] == number:
            found.append(_joined(waiting.pop(key)))
    return found


def _joined(buckets: Sequence[Bucket]) -> Bucket:
    """Join these buckets into one that holds them one behind the other."""
    first = buckets[0]
    if len(buckets) == 1:
        return first
    ranges: list[ExtentRange] = []
    pieces: list[Piece] = []
    end = 0
    for bucket in buckets:
        ranges.append(ExtentRange(bucket.offset, end, bucket.nbytes))
        pieces += (replace(piece, bucket_offset=end + piece.bucket_offset) for piece in bucket.pieces)
        end = align_up(end + bucket.nbytes)
    nbytes = ranges[-1].bucket_offset + ranges[-1].nbytes
    return replace(first, nbytes=nbytes, pieces=tuple(pieces), gathered=tuple(ranges))


def cut(
    manifest: Manifest, ranges: Sequence[DemandedRange], bucket_bytes: int, split_above: int | None
) -> Iterator[Bucket]:
    """Yield buckets of whole ranges, at most ``bucket_bytes`` long where their size allows, in the order of memory.

    Args:
        manifest: where they lie.
        ranges: what to cut.
        bucket_bytes: size to aim at, a multiple of 256.
        split_above: ranges that take more than this many bytes in a bucket are cut; None never cuts one.

    Returns: buckets of one range each, without slots.
    """
    placed = [(manifest.tensors[demanded.tensor], demanded) for demanded in ranges]
    placed.sort(key=lambda pair: (pair[0].extent, pair[0].offset + pair[1].offset, pair[1].nbytes))
    extent, start, end, receiver_set = -1, 0, 0, -1
    pieces: list[Piece] = []
    for tensor, demanded in placed:
        offset = tensor.offset + demanded.offset
        range_end = offset + demanded.nbytes
        apart = tensor.extent != extent or demanded.receiver_set != receiver_set or offset - end > ALIGNMENT
        if pieces and (apart or range_end - start > bucket_bytes):
            yield Bucket(extent, start, end - start, IN_PLACE, IN_PLACE, tuple(pieces), receiver_set)
            pieces = []
        if not pieces:
            extent, start, receiver_set = tensor.extent, align_down(offset), demanded.receiver_set
        if split_above is not None and range_end - start > split_above:
            *whole, (start, last) = _split(demanded, offset, start, split_above)
            for piece_start, piece in whole:
                nbytes = piece.bucket_offset + piece.nbytes
                yield Bucket(extent, piece_start, nbytes, IN_PLACE, IN_PLACE, (piece,), receiver_set)
            pieces = [last]
        else:
            pieces.append(Piece(demanded.tensor, demanded.offset, offset - start, demanded.nbytes))
        end = range_end
    if pieces:
        yield Bucket(extent, start, end - start, IN_PLACE, IN_PLACE, tuple(pieces), receiver_set)


def _split(demanded: DemandedRange, offset: int, start: int, limit: int) -> Iterator[tuple[int, Piece]]:
    """Pieces of one range at ``offset`` of its extent, each with the start of the bucket it goes into."""
    done = 0
    while done < demanded.nbytes:
        into_bucket = offset + done - start
        length = min(limit - into_bucket, demanded.nbytes - done)
        yield start, Piece(demanded.tensor, demanded.offset + done, into_bucket, length)
        done += length
        start += limit
