"""Boxes of sources reach each sink as the bytes that a list of all their rows would bring, however they are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_transport import TensorShard
from ckpt_transport.checkpoint import Store
from ckpt_transport.execution import column_extents
from ckpt_transport.memory import Backing, MemoryKind, StridedRange
from ckpt_transport.planning import (
    EVERYTHING,
    Manifest,
    Plan,
    RankInfo,
    Role,
    Settings,
    Share,
    Topology,
    digest_of,
    plan,
    run_by_run,
    spread,
    verify,
)
from tests.unit.worlds import INVENTED, PLENTY

Box = tuple[slice, ...]


class Cut(NamedTuple):
    """A tensor, its boxes, and the sources that have each."""

    whole: torch.Tensor
    boxes: list[tuple[Box, tuple[int, ...]]]


class Asked(NamedTuple):
    """What one sink needs: everything, or runs of each tensor."""

    parts: list[list[StridedRange]] | None


def is_empty(box: Box) -> bool:
    return any(each.start == each.stop for each in box)


@st.composite
def boxes(draw: st.DrawFn, box: Box, depth: int = 3) -> list[Box]:
    """A box cut in two, and these again, along any dimensions; some are empty."""
    if not depth or draw(st.booleans()):
        return [box]
    dim = draw(st.integers(0, len(box) - 1))
    at = draw(st.integers(box[dim].start, box[dim].stop))
    halves = (slice(box[dim].start, at), slice(at, box[dim].stop))
    return [each for half in halves for each in draw(boxes((*box[:dim], half, *box[dim + 1 :]), depth - 1))]


@st.composite
def cuts(draw: st.DrawFn, sources: int) -> Cut:
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    dtype = draw(st.sampled_from([torch.uint8, torch.bfloat16, torch.float64]))
    count = torch.Size(shape).numel()
    whole = torch.arange(count).add(draw(st.integers(0, 200))).remainder(251).to(torch.uint8)
    whole = whole.repeat_interleave(dtype.itemsize).view(dtype).view(shape)
    found = draw(boxes(tuple(slice(0, size) for size in shape)))
    owners = st.lists(st.integers(0, sources - 1), min_size=1, max_size=sources, unique=True)
    return Cut(whole, [(box, tuple(sorted(draw(owners)))) for box in found])


@st.composite
def parts(draw: st.DrawFn, whole: torch.Tensor) -> list[StridedRange]:
    """All of a tensor, some of its rows, some of its columns, or nothing."""
    rows = len(whole)
    size = whole.nbytes // rows
    first, last = sorted(draw(st.tuples(st.integers(0, rows), st.integers(0, rows))))
    start, end = sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size))))
    kind = draw(st.sampled_from(["all", "rows", "columns", "nothing"]))
    if kind == "rows" and first < last:
        return [StridedRange(first * size, (last - first) * size)]
    if kind == "columns" and rows > 1 and end - start not in (0, size):
        return [StridedRange(start, end - start, rows, size)]
    return [] if kind == "nothing" else [StridedRange(0, whole.nbytes)]


@st.composite
def worlds(draw: st.DrawFn) -> tuple[int, list[Cut], list[Asked]]:
    sources = draw(st.integers(1, 3))
    version = draw(st.lists(cuts(sources), min_size=1, max_size=3))
    asked = st.one_of(st.just(Asked(None)), st.builds(Asked, st.tuples(*(parts(each.whole) for each in version))))
    return sources, version, draw(st.lists(asked, min_size=1, max_size=3))


def given_by(version: Sequence[Cut], source: int) -> dict[str, list[TensorShard]]:
    """What one source has."""
    found: dict[str, list[TensorShard]] = {}
    for number, (whole, cut) in enumerate(version):
        own = [(box, len(owners) > 1) for box, owners in cut if source in owners and not is_empty(box)]
        if own:
            found[str(number)] = [
                TensorShard(whole[box].contiguous(), whole.shape, [each.start for each in box], several)
                for box, several in own
            ]
    return found


def share_of(asked: Asked, digest: str, version: Sequence[Cut]) -> Share:
    assert asked.parts is not None
    ranges, slices = [], []
    for number, (own, cut) in enumerate(zip(asked.parts, version, strict=True)):
        for part in own:
            ranges.append((str(number), *((0, cut.whole.nbytes) if part.runs > 1 else (part.start, part.nbytes))))
            slices += [(str(number), part)] if part.runs > 1 else []
    return Share(digest, tuple(ranges), tuple(slices))


def fleet(version: Sequence[Cut], manifest: Manifest, sources: int, sinks: Sequence[Asked], transport: str) -> Topology:
    digest = digest_of(manifest.specs.values())
    shares = [share_of(asked, digest, version) for asked in sinks if asked.parts is not None]
    numbers = [*accumulate((asked.parts is not None for asked in sinks), initial=0)]
    ranks = [RankInfo(rank, Role.SOURCE, "one", PLENTY, (transport,)) for rank in range(sources)]
    ranks += [
        RankInfo(
            sources + n, Role.SINK, "one", PLENTY, (transport,), share=EVERYTHING if asked.parts is None else numbers[n]
        )
        for n, asked in enumerate(sinks)
    ]
    return Topology(tuple(ranks), tuple(shares))


def reads(made: Plan, sink: int, number: int) -> Iterator[tuple[int, int]]:
    """What a sink reads of a bucket that comes to it: first byte and end."""
    found = made.reads.of(sink, number)
    for part in (StridedRange(0, made.buckets[number].nbytes),) if found is None else found:
        for run in range(part.runs):
            yield part.start + run * part.stride, part.start + run * part.stride + part.nbytes


def carried_out(made: Plan, extents: dict[int, Backing], sink: int, version: Sequence[Cut]) -> list[torch.Tensor]:
    """What a sink has of each tensor when all buckets have come to it; zero elsewhere."""
    taken = [torch.zeros(cut.whole.nbytes, dtype=torch.uint8) for cut in version]
    for number, bucket in enumerate(made.buckets):
        if sink not in made.receiver_sets[bucket.receiver_set]:
            continue
        filled, slot = (torch.full((bucket.nbytes,), 0xA5, dtype=torch.uint8) for _ in range(2))
        for part in bucket.ranges:
            extents[bucket.extent].fill(filled[part.bucket_offset : part.bucket_offset + part.nbytes], part.offset)
        for start, end in reads(made, sink, number):
            slot[start:end] = filled[start:end]
        for place in (place for piece in bucket.pieces for place in made.places(piece)):
            rows = slot[place.at : place.at + place.total].view(place.runs, place.nbytes)
            into = taken[int(place.spec.name)]
            into.as_strided((place.runs, place.nbytes), (place.stride, 1), place.start).copy_(rows)
    return taken


def bytes_of(whole: torch.Tensor) -> torch.Tensor:
    return whole.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("transport", ["read", "wire", "window"])
@settings(max_examples=150, deadline=None)
@given(worlds(), st.sampled_from([256, 1024, 1 << 20]), st.booleans())
def test_given_boxes_of_any_shape_then_each_sink_gets_the_bytes_that_it_needs(
    transport: str, world: tuple[int, list[Cut], list[Asked]], bucket_bytes: int, lend: bool
) -> None:
    sources, version, sinks = world
    with ExitStack() as stack:
        stored = []
        for rank in range(sources):
            store = stack.enter_context(Store(rank=rank, world_size=sources, pool=MemoryKind.PRIVATE, threads=1))
            own = given_by(version, rank)
            if own or sources > 1:
                stored.append((store.lend if lend else store.register)("v", tensors=own))
        shards = [each.manifest for each in stored]
        rates = dict.fromkeys(range(sources), 1.0)
        manifest = spread("v", shards, rates, (), whole=False)
        topology = fleet(version, manifest, sources, sinks, transport)
        made = plan(
            manifest, topology, INVENTED, Settings(transport=transport, bucket_bytes=bucket_bytes, range_bytes=256)
        )
        verify(made)
        assert Plan.decode(made.encode()) == made
        backings: list[Backing] = [extent for each in stored for extent in each.extents]
        extents = dict(enumerate(backings))
        extents |= dict(column_extents(made.manifest, extents))
        for asked, sink in zip(sinks, topology.sinks, strict=True):
            taken = carried_out(made, extents, sink, version)
            for number, cut in enumerate(version):
                wanted = [StridedRange(0, cut.whole.nbytes)] if asked.parts is None else asked.parts[number]
                for part in wanted:
                    place = (part.runs, part.nbytes), (part.stride, 1), part.start
                    assert torch.equal(taken[number].as_strided(*place), bytes_of(cut.whole).as_strided(*place))


def expanded(shard: Manifest) -> Manifest:
    return Manifest(shard.version, shard.extents, tuple(run_by_run(shard.tensors)), replicated=shard.replicated)


@settings(max_examples=100, deadline=None)
@given(worlds())
def test_given_boxes_then_each_byte_is_sent_from_where_a_list_of_rows_has_it(
    world: tuple[int, list[Cut], list[Asked]],
) -> None:
    """Given boxes of which each is at one source, then who sends a byte does not depend on how that is written."""
    sources, version, _ = world
    alone = [Cut(whole, [(box, owners[:1]) for box, owners in cut]) for whole, cut in version]
    shards = []
    for rank in range(sources):
        with Store(rank=rank, world_size=sources, pool=MemoryKind.PRIVATE, threads=1) as store:
            own = given_by(alone, rank)
            shards += [store.register("v", tensors=own).manifest] if own or sources > 1 else []
    rates = dict.fromkeys(range(sources), 1.0)
    boxes, rows = (spread("v", each, rates, (), whole=False) for each in (shards, [*map(expanded, shards)]))
    assert len(boxes.tensors) <= sum(len(shard.tensors) for shard in shards), "the plan grows with boxes, not with rows"
    orders = {order.name: order for order in boxes.ordered}
    found: list[dict[tuple[str, int], tuple[int, int]]] = [{}, {}]
    for which, made in zip(found, (boxes, rows), strict=True):
        for tensor in made.tensors:
            name, at = tensor.spec.name, tensor.offset
            order = orders.get(name) if made is boxes else None
            ranges = order.places(tensor.start, tensor.nbytes) if order is not None else [tensor.part]
            for part in ranges:
                for byte in (
                    part.start + run * part.stride + n for run in range(part.runs) for n in range(part.nbytes)
                ):
                    which[name, byte] = tensor.extent, at
                    at += 1
    assert found[0] == found[1]
