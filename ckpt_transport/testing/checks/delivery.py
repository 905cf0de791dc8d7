"""Do the bytes arrive: all of them, the right ones, nowhere else?"""

from __future__ import annotations

import torch
from msgspec.structs import replace

from ckpt_transport.checkpoint.pool import lay_out
from ckpt_transport.checkpoint.scattered import ExportedTensors, ReadableTensors
from ckpt_transport.checkpoint.watched import Watched
from ckpt_transport.errors import TransportError
from ckpt_transport.memory import Buffer, MemoryKind, Segment, copy_bytes
from ckpt_transport.testing.check import check
from ckpt_transport.testing.harness import Broken, Rank, refuses
from ckpt_transport.testing.route_fixture import pattern
from ckpt_transport.transports.interface import Span

MIB = 1024**2
SIZES = (0, 1, 2, 3, 255, 256, 257, 4097, 65537, MIB + 1, 6 * MIB + 5)
APART = (1, 4097, 255, MIB + 3, 256, 70_001)
"""Sizes of tensors that lie apart."""
PAD = 7
"""Bytes between pieces, so that next to nothing is aligned."""


@check("Every byte of a transfer arrives, unchanged, at every receiver, whatever the size.", "Completion.done")
def check_bytes_arrive(rank: Rank) -> None:
    total = sum(SIZES) + PAD * len(SIZES)
    route = rank.open(regions=(total,), inbox=total + PAD, seed=1)
    offset = 0
    for nbytes in SIZES:
        offset += PAD
        route.carry(route.transfer(Span(0, offset, offset + PAD, nbytes)), 1)
        offset += nbytes
    route.carry(route.transfer(), 1)


def _scattered() -> tuple[Span, ...]:
    """Forty spans of three regions, in an order of their own, with empty ones among them. The last is large."""
    spans, local = [], PAD
    for index in range(39):
        nbytes = (index * 613) % 2500
        spans.append(Span(index % 3, (38 - index) // 3 * 2600 + index % 5, local, nbytes))
        local += nbytes + index % 2 * PAD
    return (*spans, Span(2, 40_001, local + 1, 20_001))


@check("A scatter list of any shape arrives whole: every span at its place, from the first to the last.", "Span")
def check_every_span_arrives(rank: Rank) -> None:
    route = rank.open(regions=(60_010, 60_011, 60_013), inbox=100_000)
    spans = _scattered()
    for seed in range(3):
        route.fill(seed)
        rank.side_channel.meet()
        route.carry(replace(route.transfer(), spans=spans), seed)
        rank.side_channel.meet()


@check("A transfer writes the bytes its spans name and no others, neither here nor at the sender.", "Span")
def check_nothing_else_is_written(rank: Rank) -> None:
    route = rank.open(regions=(60_010, 60_011, 60_013), inbox=100_000, seed=1)
    before = [source.tensor.clone() for source in route.sources]
    transfers = [route.transfer(*_scattered()), route.transfer(Span(1, 3, 99_990, 9)), route.transfer(Span(0, 5, 0, 1))]
    for transfer in transfers:
        route.carry(transfer, 1)
    route.untouched(transfers)
    rank.side_channel.meet()
    for source, was in zip(route.sources, before, strict=True):
        if not torch.equal(source.tensor, was):
            raise Broken("the memory that was sent is not what it was before")


@check(
    "Several transfers may be in flight, may be polled in any order, and each gives its own bytes.",
    "Transfer.seq, Completion.done",
)
def check_transfers_stay_apart(rank: Rank) -> None:
    slot, count = 30_011, 8
    route = rank.open(regions=(slot * count,), inbox=slot * count, seed=1)
    for poll_order in (range(count), reversed(range(count))):
        transfers = [route.transfer(Span(0, slot * i, slot * (count - 1 - i), slot - i)) for i in range(count)]
        posted = [route.post(transfer) for transfer in transfers]
        for i in poll_order:
            route.wait(posted[i], transfers[i])
        for receipt, transfer in zip(posted, transfers, strict=True):
            route.compare(receipt, transfer, 1)
            receipt.release()
        rank.side_channel.meet()


@check("Any member of a route may send; transfers of different senders follow one another by seq.", "Endpoint.connect")
def check_senders_take_turns(rank: Rank) -> None:
    size = 50_021
    route = rank.open(regions=(size,), inbox=3 * size, senders=(0, 1, 2), seed=1)
    transfers = [route.transfer(Span(0, i, size * (i % 3), size - i), sender=i % 3) for i in range(3)]
    posted = [route.post(transfer) for transfer in transfers]
    for receipt, transfer in zip(posted, transfers, strict=True):
        route.complete(receipt, transfer, 1)
    for i in range(6):
        route.carry(route.transfer(Span(0, i, i, 1000 + i), sender=(2 * i) % 3), 1)


@check(
    "Memory from allocate() has the size that was asked for and can be sent from; so can the kinds in sends_from.",
    "Endpoint.allocate, Traits.sends_from",
)
def check_promised_memory(rank: Rank) -> None:
    size = 70_003
    route = rank.open(inbox=size)
    makers = [route.endpoint.allocate]
    kinds = rank.transport.traits.sends_from
    if MemoryKind.PRIVATE in kinds:
        makers.append(Buffer.private)
    if MemoryKind.SHARED in kinds:
        makers.append(lambda nbytes: Buffer.of(Segment.create(nbytes)))
    route.replace([size] * len(makers), lambda index: makers[index](size))
    for source in route.sources:
        if source.nbytes != size or source.tensor.dtype is not torch.uint8:
            raise Broken(f"{size} bytes were asked for, and {source.nbytes} of {source.tensor.dtype} came")
    route.fill(1)
    for index in range(len(makers)):
        route.carry(route.transfer(Span(index, 1, 2, size - 3)), 1)
    if MemoryKind.EXPORTED in kinds:
        _carry_what_lies_apart(rank, ExportedTensors)
    if MemoryKind.READABLE in kinds:
        _carry_what_lies_apart(rank, ReadableTensors)


def _carry_what_lies_apart(rank: Rank, kind: type[ExportedTensors]) -> None:
    """Send tensors from where they lie: twice from the same memory, then from other memory."""
    offsets, end = lay_out(APART)
    route = rank.open(inbox=end)
    spans = tuple(Span(0, offset, offset, nbytes) for offset, nbytes in zip(offsets, APART, strict=True))
    cut = tuple(Span(0, offset + 1, offset, nbytes - 1) for offset, nbytes in zip(offsets, APART, strict=True))
    lists = spans, cut, spans[::-1]
    tensors: list[torch.Tensor] = []
    for seed, moves in ((1, True), (2, False), (3, True)):
        if rank.number in route.senders:
            for region in route.regions:
                region.close()
            if moves:
                device = "cpu" if kind is ReadableTensors else route.endpoint.device
                tensors = [torch.empty(nbytes, dtype=torch.uint8, device=device) for nbytes in APART]
            for tensor, offset in zip(tensors, offsets, strict=True):
                copy_bytes(tensor, pattern(seed, 0, offset, tensor.numel()))
            memory = kind.of(tensors, offsets, end, Watched({}))
            route.regions = [route.endpoint.register(memory)]
        route.connect()
        for each in lists:
            route.carry(replace(route.transfer(), spans=each), seed)
        rank.side_channel.meet()
    if rank.number in route.senders:
        transfer = route.transfer(Span(0, 0, 0, end))
        refuses("a span over several runs", lambda: route.endpoint.post_send(transfer, route.regions), TransportError)
