"""What sinks cut by columns is sent by columns: a plan of such a version is about tensors in column order.

Their bytes are gathered at the sources, a bucket at a time. That is for transports that carry bytes; who maps memory
reads slices where they lie.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import msgspec

from ckpt_transport.memory import CONTIGUOUS, MemoryKind, StridedRange
from ckpt_transport.planning.links import Links
from ckpt_transport.planning.values.alignment import align_up
from ckpt_transport.planning.values.column_order import ColumnOrder, ColumnPart
from ckpt_transport.planning.values.manifest import Extent, Manifest, PlacedTensor, TensorSpec
from ckpt_transport.planning.values.share import Share
from ckpt_transport.planning.values.topology import EVERYTHING, Topology
from ckpt_transport.rates import LinkKind

MOST_BLOCKS = 64
"""A tensor that is cut into more blocks of columns is sent as it is."""


def by_columns(manifest: Manifest, topology: Topology) -> tuple[Manifest, Topology] | None:
    """The same version and fleet, with tensors that are cut by columns in column order.

    Returns: None where there are none, or a sink takes everything, of which it would get each row in parts.
    """
    numbers = {topology.participants[rank].share for rank in topology.sinks}
    if EVERYTHING in numbers or topology.whole_tensors or manifest.present or manifest.deltas:
        return None
    orders = _orders(manifest.specs, [topology.shares[number] for number in sorted(numbers)])
    if not orders:
        return None
    in_order = tuple(share.in_order(orders.values()) for share in topology.shares)
    return _in_order(manifest, orders), msgspec.structs.replace(topology, shares=in_order)


def _orders(specs: dict[str, TensorSpec], shares: Sequence[Share]) -> dict[str, ColumnOrder]:
    cut = {name for share in shares for name, _ in share.slices}
    read: defaultdict[str, list[StridedRange]] = defaultdict(list)
    for share in shares if cut else ():
        for name, part in share.reads():
            if name in cut:
                read[name].append(part)
    found = {name: _order(specs[name], read[name]) for name in sorted(cut) if name in specs}
    return {name: order for name, order in found.items() if order is not None}


def _order(spec: TensorSpec, parts: Sequence[StridedRange]) -> ColumnOrder | None:
    """Where a tensor is to be cut so that each part is of whole blocks; None where its parts are not alike."""
    strides = {part.stride for part in parts if part.runs > 1}
    if len(strides) != 1:
        return None
    (size,) = strides
    edges = {0, size}
    for part in parts:
        column = part.start % size
        if part.runs == 1 and not column and not part.nbytes % size:
            continue
        if column + part.nbytes > size:
            return None
        edges.update((column, column + part.nbytes))
    if spec.nbytes % size or len(edges) > MOST_BLOCKS + 1:
        return None
    return ColumnOrder(spec.name, spec.nbytes // size, tuple(sorted(edges)))


def _in_order(manifest: Manifest, orders: dict[str, ColumnOrder]) -> Manifest:
    """The manifest with an extent more for each owner, in which its tensors lie in column order."""
    tensors: list[PlacedTensor] = []
    columns: list[ColumnPart] = []
    ends: dict[int, int] = {}
    numbers: dict[int, int] = {}
    for tensor in manifest.tensors:
        order = orders.get(tensor.spec.name)
        if order is None or not tensor.nbytes:
            tensors.append(tensor)
            continue
        owner = manifest.extents[tensor.extent].owner
        extent = numbers.setdefault(owner, len(manifest.extents) + len(numbers))
        for number, part in order.blocks(StridedRange(tensor.start, tensor.nbytes)):
            offset = ends.get(owner, 0)
            columns.append(ColumnPart(extent, offset, tensor.extent, part.shifted(tensor.offset - tensor.start)))
            tensors.append(PlacedTensor(tensor.spec, extent, offset, part.total, number))
            ends[owner] = align_up(offset + part.total)
    extents = (Extent(owner, ends[owner], MemoryKind.SCATTERED) for owner in numbers)
    return msgspec.structs.replace(
        manifest,
        extents=(*manifest.extents, *extents),
        tensors=tuple(tensors),
        ordered=tuple(orders.values()),
        columns=tuple(columns),
    )


def gathering_seconds(manifest: Manifest, topology: Topology, links: Links) -> float:
    """How long the owner is busy that gathers most: a core does that, beside what is sent.

    Rows of memory that is no single run are brought whole for each block of columns.
    """
    nbytes: Counter[int] = Counter()
    for column in manifest.columns:
        source, part = manifest.extents[column.source], column.part
        nbytes[source.owner] += part.total if source.kind in CONTIGUOUS else part.runs * part.stride
    return max(nbytes[owner] / links.rate(topology.host(owner), LinkKind.CORE)[0] for owner in nbytes)
