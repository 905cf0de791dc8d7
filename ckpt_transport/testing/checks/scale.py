"""Do the bytes arrive on both sides of every limit that a library may have: of sizes, offsets, spans and regions?

Libraries cut at powers of two, so each count is tried one below, at, and one above them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ckpt_transport.memory import Buffer, MemoryKind
from ckpt_transport.testing.check import LONG_DEADLINE, check
from ckpt_transport.testing.harness import Rank, RouteFixture
from ckpt_transport.transports.interface import Span

MIB = 1024**2
GIB = 1024**3
NEIGHBOURS = (1, 2, 3, 16, 64, 255, 256, 4096, 10_001)
"""Sizes of spans that lie next to others of the same size."""


def around(*exponents: int) -> list[int]:
    """List one below, at and one above each of these powers of two."""
    return sorted({number for exponent in exponents for number in (2**exponent - 1, 2**exponent, 2**exponent + 1)})


def _packed(sizes: Iterable[int], offset: int = 0, local: int = 0, gap: int = 0) -> list[Span]:
    """Spans of these sizes one after the other, with ``gap`` bytes between them where they go."""
    spans = []
    for nbytes in sizes:
        spans.append(Span(0, offset, local, nbytes))
        offset, local = offset + nbytes, local + nbytes + gap
    return spans


def _repeat(route: RouteFixture, lists: Iterable[list[Span]]) -> None:
    """Carry one transfer of each list, each of bytes of its own."""
    for use, spans in enumerate(lists):
        transfer = route.transfer(*spans)
        route.fill(use, transfer)
        route.carry(transfer, use)


@check("Spans of a power of two bytes, one more and one less arrive whole, and one of over 32 MiB.", "Span.nbytes")
def check_any_size(rank: Rank) -> None:
    sizes, large = around(*range(21)), 32 * MIB + 1
    route = rank.open(regions=(large,), inbox=large)
    shifted = large - sum(sizes)
    _repeat(route, [_packed(sizes), _packed(reversed(sizes), local=shifted), _packed([large])])


@check("A span may begin at any byte of a region, here and there, also past 16 and 32 MiB.", "Span.offset, Span.local")
def check_any_offset(rank: Rank) -> None:
    places, size, nbytes = around(*range(7, 26)), 32 * MIB + 64, 61
    route = rank.open(regions=(size,), inbox=size)
    there = [Span(0, offset, index * 67, nbytes) for index, offset in enumerate(places)]
    _repeat(route, [there, *_landing_at(places, nbytes)])


def _landing_at(places: list[int], nbytes: int) -> list[list[Span]]:
    """Spans that go to these places, which come in threes that lie close together: each of three in another list."""
    return [[Span(0, index * 67, local, nbytes) for index, local in enumerate(places[which::3])] for which in range(3)]


@check(
    "Spans of equal size that are neighbours, here and there, in any order and more than once, each get their bytes.",
    "Span",
)
def check_equal_neighbours(rank: Rank) -> None:
    count, largest = 12, max(NEIGHBOURS)
    route = rank.open(regions=(count * largest, count * largest), inbox=3 * count * largest)
    lists = []
    for nbytes in NEIGHBOURS:
        row = _packed([nbytes] * count)
        crossed = [Span(1, (count - 1 - index) * nbytes, span.local, nbytes) for index, span in enumerate(row)]
        twice = [Span(index % 2, 0, span.local, nbytes) for index, span in enumerate(row)]
        lists += [row, crossed, [*row, *_after(row, crossed), *_after(row, twice, rows=2)]]
    _repeat(route, lists)


def _after(row: list[Span], spans: list[Span], rows: int = 1) -> list[Span]:
    """``spans``, moved behind so many rows."""
    behind = rows * len(row) * row[0].nbytes
    return [Span(span.region, span.offset, span.local + behind, span.nbytes) for span in spans]


@check("A scatter list may have any number of spans, also 257 or 1,025.", "Transfer.spans")
def check_any_number_of_spans(rank: Rank) -> None:
    counts = [*around(*range(1, 9)), 1025]
    size = 9 * max(counts)
    route = rank.open(regions=(size,), inbox=size)
    _repeat(route, [_packed([index % 7 + 1 for index in range(count)], gap=count % 2) for count in counts])


@check("A sender may register 257 regions, and each span is taken from the one that it names.", "Span.region")
def check_many_regions(rank: Rank) -> None:
    count, nbytes = 257, 100
    route = rank.open(regions=(nbytes,) * count, inbox=nbytes * count)
    rows = [Span(index, index % 3, index * nbytes, nbytes - 3) for index in range(count)]
    _repeat(route, [rows, rows[::-1]])


@check(
    "Memory that was registered, closed and registered again, or other memory in its place, is sent as it is now.",
    "MemoryRegion.close, Endpoint.register",
)
def check_registered_again(rank: Rank) -> None:
    size, times = 5_003, 24
    route = rank.open(inbox=size)
    kept: list[Buffer] = []

    def same(_: int) -> Buffer:
        kept[:] = kept or [route.endpoint.allocate(size)]
        return kept[0]

    makers: list[Callable[[int], Buffer]] = [same, lambda _: route.endpoint.allocate(size)]
    if MemoryKind.PRIVATE in rank.transport.traits.sends_from:
        makers.append(lambda index: Buffer(torch.empty(size + 64, dtype=torch.uint8)[13 + index : 13 + index + size]))
    for use in range(times):
        route.replace([size], makers[use % len(makers)])
        route.fill(use)
        route.carry(route.transfer(Span(0, use % 2, 0, size - 1)), use)


# -- long -----------------------------------------------------------------------------------------------------------


@check(
    "A scatter list may have more than 65,536 spans.",
    "Transfer.spans",
    deadline=LONG_DEADLINE,
)
def check_spans_past_16_bits(rank: Rank) -> None:
    count = 2**16 + 1
    route = rank.open(regions=(9 * count,), inbox=9 * count)
    _repeat(route, [_packed([index % 7 + 1 for index in range(count)], gap=1)])


@check(
    "A span may begin past 2 GiB where it goes, and past 4 GiB where it comes from.",
    "Span.offset, Span.local",
    ranks=2,
    deadline=LONG_DEADLINE,
)
def check_offsets_past_32_bits(rank: Rank) -> None:
    nbytes, room = 61, 64 * 1024
    route = rank.open(regions=(4 * GIB + room,), inbox=2 * GIB + room)
    there = [Span(0, offset, index * 67, nbytes) for index, offset in enumerate(around(*range(26, 33)))]
    _repeat(route, [there, *_landing_at(around(*range(26, 32)), nbytes)])


@check("More than 4 GiB go through one endpoint.", "Endpoint", ranks=2, deadline=LONG_DEADLINE)
def check_bytes_past_32_bits(rank: Rank) -> None:
    nbytes, count = 64 * MIB + 1, 65
    route = rank.open(regions=(nbytes,), inbox=nbytes)
    _repeat(route, [[Span(0, 0, 0, nbytes)]] * count)
