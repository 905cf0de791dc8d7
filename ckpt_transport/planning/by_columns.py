"""What sinks cut by columns is sent by columns: a plan of such a version is about tensors in the order of their blocks.

Their bytes are gathered at the sources, a bucket at a time. That is for transports that carry bytes; who maps memory
reads slices where they lie.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import msgspec

from ckpt_transport.memory import CONTIGUOUS, MemoryKind, StridedRange
from ckpt_transport.planning.links import Links
from ckpt_transport.planning.values.alignment import align_up
from ckpt_transport.planning.values.block_order import BlockOrder, ColumnPart
from ckpt_transport.planning.values.manifest import Extent, Manifest, PlacedTensor, TensorSpec
from ckpt_transport.planning.values.share import Share
from ckpt_transport.planning.values.topology import EVERYTHING, Topology
from ckpt_transport.rates import LinkKind

MOST_BLOCKS = 64
"""A tensor that is cut into more blocks of columns is sent as it is."""


def by_columns(manifest: Manifest, topology: Topology) -> tuple[Manifest, Topology] | None:
    """The same version and fleet, with tensors that sinks cut by columns in the order of these columns.

    Returns: None where there are none, or a sink takes everything, of which it would get each row in parts.
    """
    numbers = {topology.participants[rank].share for rank in topology.sinks}
    if EVERYTHING in numbers or topology.whole_tensors or manifest.present or manifest.deltas:
        return None
    shares = [topology.shares[number] for number in sorted(numbers)]
    finer = _finer(manifest.specs, {order.name: order for order in manifest.ordered}, shares)
    if not finer:
        return None
    made = _in_order(manifest, finer)
    return made, topology.in_order(made.ordered)


def _finer(
    specs: Mapping[str, TensorSpec], known: Mapping[str, BlockOrder], shares: Sequence[Share]
) -> dict[str, BlockOrder]:
    """Of tensors that are cut by columns the blocks of which each share takes some."""
    cut = {name for share in shares for name, _ in share.slices}
    read: defaultdict[str, list[StridedRange]] = defaultdict(list)
    for share in shares if cut else ():
        for name, part in share.reads():
            if name in cut:
                read[name].append(part)
    found: dict[str, BlockOrder] = {}
    for name in sorted(cut & specs.keys()):
        whole = StridedRange(0, specs[name].nbytes)
        held = known[name].blocks if name in known else (whole,)
        strides = {part.stride for part in read[name] if part.runs > 1}
        if len(strides | {block.stride for block in held if block.runs > 1}) != 1:
            continue
        columns = _columns(whole, read[name], *strides)
        blocks = tuple(part for block in held for column in columns for part, _ in block.common(column))
        if blocks and blocks != tuple(held) and len(blocks) <= max(MOST_BLOCKS, len(held)):
            found[name] = BlockOrder(name, blocks)
    return found


def _columns(whole: StridedRange, parts: Sequence[StridedRange], size: int) -> Sequence[StridedRange]:
    """The columns of rows of ``size`` bytes of which each part has all or none; none if that cannot be."""
    edges = {0, size}
    for part in parts:
        column = part.start % size
        if part.runs == 1 and not column and not part.nbytes % size:
            continue
        if column + part.nbytes > size:
            return ()
        edges.update((column, column + part.nbytes))
    if whole.nbytes % size or len(edges) > MOST_BLOCKS + 1:
        return ()
    rows = whole.nbytes // size
    return [StridedRange.of(low, high - low, rows, size) for low, high in pairwise(sorted(edges))]


def _in_order(manifest: Manifest, finer: dict[str, BlockOrder]) -> Manifest:
    """The manifest with an extent more for each owner, in which its tensors lie in the order of these blocks."""
    known = {order.name: order for order in manifest.ordered}
    tensors: list[PlacedTensor] = []
    columns: list[ColumnPart] = []
    ends: dict[int, int] = {}
    numbers: dict[int, int] = {}
    for tensor in manifest.tensors:
        order = finer.get(tensor.spec.name)
        if order is None or not tensor.nbytes:
            tensors.append(tensor)
            continue
        owner = manifest.extents[tensor.extent].owner
        extent = numbers.setdefault(owner, len(manifest.extents) + len(numbers))
        for number, part in _blocks(tensor, known.get(tensor.spec.name), order):
            offset = ends.get(owner, 0)
            columns.append(ColumnPart(extent, offset, tensor.extent, part))
            tensors.append(PlacedTensor(tensor.spec, extent, offset, part.total, number))
            ends[owner] = align_up(offset + part.total)
    extents = (Extent(owner, ends[owner], MemoryKind.SCATTERED) for owner in numbers)
    return msgspec.structs.replace(
        manifest,
        extents=(*manifest.extents, *extents),
        tensors=tuple(tensors),
        ordered=tuple((known | finer).values()),
        columns=tuple(columns),
    )


def _blocks(tensor: PlacedTensor, known: BlockOrder | None, order: BlockOrder) -> Iterator[tuple[int, StridedRange]]:
    """A placed tensor block by block: the number of the first byte, and where the bytes are in the extent."""
    offset = tensor.offset
    held = [StridedRange(tensor.start, tensor.nbytes)] if known is None else known.places(tensor.start, tensor.nbytes)
    for here in held:
        for number, part in order.numbers(here):
            ((_, at),) = here.common(part)
            yield number.start, at.shifted(offset)
        offset += here.total


def gathering_seconds(manifest: Manifest, topology: Topology, links: Links) -> float:
    """How long the owner is busy that gathers most: a core does that, beside what is sent.

    Rows of memory that is no single run are brought whole for each block of columns.
    """
    nbytes: Counter[int] = Counter()
    for column in manifest.columns:
        source, part = manifest.extents[column.source], column.part
        nbytes[source.owner] += part.total if source.kind in CONTIGUOUS else part.runs * part.stride
    return max(nbytes[owner] / links.rate(topology.host(owner), LinkKind.CORE)[0] for owner in nbytes)
