"""This module says who sends which bytes of a version, when sources hold parts of tensors, or several hold the same.

A source may hold a tensor whole or ranges of its bytes, as a sharded trainer has them. :func:`spread` puts the version
together: it finds a byte that nobody holds, refuses one that two hold without saying that theirs are alike, and gives
every other one owner. Where several may send a range, :mod:`ckpt_transport.planning.assignment` chooses.

Of a tensor that is cut by columns sources hold strided ranges. Its bytes are numbered in the order of these, so that
what a source holds is one range here, too (:mod:`ckpt_transport.planning.tiles`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import StridedRange
from ckpt_transport.planning.assignment import UNITS_PER_HOLDER, Unit, assign
from ckpt_transport.planning.tiles import ordered
from ckpt_transport.planning.values.alignment import ALIGNMENT, align_down, align_up
from ckpt_transport.planning.values.block_order import BlockOrder
from ckpt_transport.planning.values.byte_ranges import ByteRangeSet
from ckpt_transport.planning.values.manifest import (
    Extent,
    Manifest,
    PlacedTensor,
    TensorRange,
    TensorSpec,
    check_version,
    conversions_of,
)


class _Copy(NamedTuple):
    """Bytes of one tensor where one source has them; ``extent`` counts in the whole version's manifest.

    They go from ``start`` to ``end`` in the order in which the version numbers them; ``part`` says where that is in the
    tensor.
    """

    owner: int
    extent: int
    offset: int
    start: int
    end: int
    digest: bytes
    replicated: bool
    part: StridedRange

    def at(self, start: int) -> int:
        """Where in its extent that byte of the tensor lies."""
        return self.offset + start - self.start


class _Section(NamedTuple):
    """A range of bytes of one tensor that the same sources hold."""

    spec: TensorSpec
    start: int
    end: int
    copies: Sequence[_Copy]

    @property
    def in_words(self) -> str:
        """Which bytes of the tensor they are."""
        part = self.copies[0].part
        if part.runs == 1:
            return f"bytes {self.start} to {self.end}"
        return f"{part.runs:,} runs of {part.nbytes:,} bytes, {part.stride:,} apart, from byte {part.start:,} on"


@dataclass(slots=True)
class _HeldRange:
    """Sections that lie one behind the other at everybody who holds them: what one source sends as one unit."""

    sections: list[_Section]
    nbytes: int


def spread(
    version: str, shards: Sequence[Manifest], rates: Mapping[int, float], present: Sequence[TensorRange], *, whole: bool
) -> Manifest:
    """Make the manifest of a version in which every range of bytes has one owner, although several may hold it.

    Args:
        version: its name.
        shards: what each source holds.
        rates: bytes per second at which each source can send; of those that hold what others hold, too.
        present: bytes that every sink has already, which are left out.
        whole: no tensor may be cut, because a sink's loader takes tensors whole.

    Raises:
        CheckpointError: two sources hold a tensor of one name that is not the same, or do not say what its bytes are;
            nobody holds some bytes of one; one is held in parts and may not be cut; or a source holds another version.
    """
    extents, copies, specs = _collect(version, shards)
    orders: list[BlockOrder] = []
    sections: list[_Section] = []
    for name, spec in specs.items():
        own = copies[name]
        if any(copy.part.runs > 1 for copy in own):
            order = None if present else ordered(spec, [copy.part for copy in own])
            own = _run_by_run(own) if order is None else _numbered(own, order)
            orders += filter(None, [order])
        sections += _sections(spec, own)
    if whole:
        _check_whole(sections)
    if not present and all(len(section.copies) == 1 for section in sections):
        tensors = [_placed(section, section.copies[0]) for section in sections]
    else:
        tensors = list(_chosen(sections, rates, ByteRangeSet((p.spec.name, p.start, p.nbytes) for p in present), whole))
    return Manifest(
        version,
        tuple(extents),
        tuple(tensors),
        tuple(present),
        conversions=conversions_of(shards),
        mappings=tuple(dict.fromkeys(mapping for shard in shards for mapping in shard.mappings)),
        deltas=tuple(delta for shard in shards for delta in shard.deltas),
        ordered=tuple(orders),
    )


def _collect(
    version: str, shards: Sequence[Manifest]
) -> tuple[list[Extent], dict[str, list[_Copy]], dict[str, TensorSpec]]:
    """Collect all extents, and the copies of each tensor in the order of the first source that holds some of it."""
    extents: list[Extent] = []
    copies: defaultdict[str, list[_Copy]] = defaultdict(list)
    specs: dict[str, TensorSpec] = {}
    for shard in shards:
        check_version(version, shard)
        base = len(extents)
        extents.extend(shard.extents)
        replicated = set(shard.replicated)
        order = sorted(range(len(shard.tensors)), key=lambda n: (shard.tensors[n].extent, shard.tensors[n].offset))
        for number in order:
            tensor = shard.tensors[number]
            spec, extent, offset, nbytes, start = _fields(tensor)
            digest = shard.digests[number] if shard.digests else b""
            owner = shard.extents[extent].owner
            _check_part(tensor)
            if (first := specs.setdefault(spec.name, spec)) != spec:
                other = copies[spec.name][0].owner
                raise CheckpointError(
                    f"tensor '{spec.name}' is held by source ranks {other} and {owner} and differs: {first} and {spec}"
                )
            copies[spec.name].append(
                _Copy(owner, base + extent, offset, start, start + nbytes, digest, spec.name in replicated, tensor.part)
            )
    return extents, copies, specs


def _fields(tensor: PlacedTensor) -> tuple[TensorSpec, int, int, int, int]:
    return tensor.spec, tensor.extent, tensor.offset, tensor.nbytes, tensor.start


def _check_part(tensor: PlacedTensor) -> None:
    """
    Raises:
        CheckpointError: these are no bytes of the tensor.
    """
    if tensor.runs > 1:
        part = tensor.part
        if not 0 < part.nbytes < part.stride or part.total != tensor.nbytes or part.start < 0:
            raise CheckpointError(f"a source says that it has {tensor.nbytes} bytes of {tensor.spec} as {part}")
        if part.end > tensor.spec.nbytes:
            raise CheckpointError(f"a source says that it has bytes up to {part.end} of tensor {tensor.spec}")


def _numbered(copies: Sequence[_Copy], order: BlockOrder) -> list[_Copy]:
    """The same copies, each of which is a block of the order."""
    firsts = dict(zip(order.blocks, order.starts, strict=True))
    return [
        copy._replace(start=firsts[copy.part], end=firsts[copy.part] + copy.part.total)
        for copy in copies
        if copy.start < copy.end
    ]


def _run_by_run(copies: Sequence[_Copy]) -> list[_Copy]:
    """The same copies, each run by itself."""
    found: list[_Copy] = []
    for copy in copies:
        part = copy.part
        for number in range(part.runs):
            start = part.start + number * part.stride
            run = StridedRange(start, part.nbytes)
            at = copy.offset + number * part.nbytes
            found.append(copy._replace(offset=at, start=start, end=run.end, part=run))
    return found


def _sections(spec: TensorSpec, copies: Sequence[_Copy]) -> Iterator[_Section]:
    """Cut a tensor where the sources that hold it change.

    Raises:
        CheckpointError: nobody holds some of its bytes, or two who do not agree on them hold the same.
    """
    if all(copy.start == 0 and copy.end == spec.nbytes for copy in copies):
        yield _Section(spec, 0, spec.nbytes, _one_of_each(spec, 0, spec.nbytes, copies))
        return
    waiting = sorted((copy for copy in copies if copy.start < copy.end), key=lambda copy: copy.start, reverse=True)
    edges = sorted({0, spec.nbytes, *(edge for copy in waiting for edge in (copy.start, copy.end))})
    here: list[_Copy] = []
    for low, high in pairwise(edges):
        here = [copy for copy in here if copy.end > low]
        while waiting and waiting[-1].start == low:
            here.append(waiting.pop())
        if not here:
            raise CheckpointError(
                f"no source rank holds bytes {low} to {high} of tensor {spec}, of which {_who_hold(copies)}; every "
                "rank that has a part of a tensor must be a source, counted by world_size"
            )
        yield _Section(spec, low, high, _one_of_each(spec, low, high, here))


def _who_hold(copies: Sequence[_Copy]) -> str:
    owners = sorted({copy.owner for copy in copies})
    if len(owners) == 1:
        return f"source rank {owners[0]} holds others"
    return f"source ranks {', '.join(map(str, owners[:-1]))} and {owners[-1]} hold others"


def _one_of_each(spec: TensorSpec, low: int, high: int, copies: Sequence[_Copy]) -> tuple[_Copy, ...]:
    """One copy of these bytes from each source that holds them.

    Raises:
        CheckpointError: they are not equal, as digests show, or as those say who hold them; names the bytes.
    """
    found: dict[int, _Copy] = {}
    for copy in copies:
        for other in (found.get(copy.owner), copies[0]):
            if other is not None and other is not copy and not (other.replicated and copy.replicated):
                _check_alike(f"{_Section(spec, low, high, [copy]).in_words} of tensor '{spec.name}'", other, copy)
        found.setdefault(copy.owner, copy)
    return tuple(found.values())


def _check_alike(what: str, one: _Copy, other: _Copy) -> None:
    """Two copies of the same bytes, not both of which are declared to be equal, are so by their digests."""
    if one.owner == other.owner:
        raise CheckpointError(
            f"source rank {one.owner} holds {what} twice; leave one of the parts out, or say replicated=True of both "
            "where they are equal"
        )
    who = f"{what} are held twice, by source ranks {one.owner} and {other.owner}"
    if not one.digest or not other.digest or (one.start, one.end) != (other.start, other.end):
        raise CheckpointError(
            f"{who}, and they do not both say that these are equal; where they are, say replicated=True on all ranks "
            "that have them; 'ckpt-transport serve' compares checkpoints that several processes hold"
        )
    if one.digest != other.digest:
        raise CheckpointError(f"{who}, and differ; they hold different checkpoints under one name")


def _check_whole(sections: Iterable[_Section]) -> None:
    for section in sections:
        spec, start, end, copies = section
        if end - start != spec.nbytes:
            owners = ", ".join(str(copy.owner) for copy in copies)
            raise CheckpointError(
                f"a sink's loader takes tensors whole, and source rank {owners} holds only {section.in_words} of "
                f"{spec}; give full_tensor() of it, on one rank or with replicated=True on all"
            )


def _placed(section: _Section, copy: _Copy) -> PlacedTensor:
    spec, start, end, _ = section
    return PlacedTensor(spec, copy.extent, copy.at(start), end - start, start)


def _chosen(
    sections: Sequence[_Section], rates: Mapping[int, float], present: ByteRangeSet, whole: bool
) -> Iterator[PlacedTensor]:
    """What is missing of ``sections``, with the owner that sends it."""
    holders = {copy.owner for section in sections for copy in section.copies}
    nbytes = sum(section.end - section.start for section in sections) - sum(size for _, _, size in present)
    grain = max(align_up(nbytes // (UNITS_PER_HOLDER * max(len(holders), 1))), ALIGNMENT)
    cut = (part for section in sections for part in _parts(section, grain, present, whole=whole))
    ranges = list(_held_ranges(cut, grain))
    units = [Unit(each.nbytes, tuple(sorted(copy.owner for copy in each.sections[0].copies))) for each in ranges]
    owners = assign(units, {rank: rates[rank] for rank in holders})
    for held, owner in zip(ranges, owners, strict=True):
        for section in held.sections:
            yield _placed(section, next(copy for copy in section.copies if copy.owner == owner))


def _parts(section: _Section, grain: int, present: ByteRangeSet, *, whole: bool) -> Iterator[_Section]:
    """Cut what is missing of a section into ranges of at most a grain, if it may be cut."""
    spec, start, end, _ = section
    for low, high in present.missing(spec.name, start, end - start):
        if whole:
            yield section
            return
        while high - low > grain:
            cut = align_down(low + grain)
            yield section._replace(start=low, end=cut)
            low = cut
        yield section._replace(start=low, end=high)


def _held_ranges(sections: Iterable[_Section], grain: int) -> Iterator[_HeldRange]:
    current: _HeldRange | None = None
    for section in sections:
        if current is not None and _continues(current, section, grain):
            current.sections.append(section)
            current.nbytes += section.end - section.start
            continue
        if current is not None:
            yield current
        current = _HeldRange([section], section.end - section.start)
    if current is not None:
        yield current


def _continues(held: _HeldRange, section: _Section, grain: int) -> bool:
    """Whether a section lies right behind a range at everybody who holds either."""
    last = held.sections[-1]
    if held.nbytes + section.end - section.start > grain or len(section.copies) != len(last.copies):
        return False
    ends = [(copy.owner, copy.extent, copy.at(last.end)) for copy in last.copies]
    return all(
        (copy.owner, copy.extent) == (owner, extent) and 0 <= copy.at(section.start) - end < ALIGNMENT
        for copy, (owner, extent, end) in zip(section.copies, ends, strict=True)
    )
