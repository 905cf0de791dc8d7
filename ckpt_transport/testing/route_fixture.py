"""A fixture is one rank's end of a route under test: known bytes go in, and torch alone compares what comes out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import msgspec
import torch

from ckpt_transport.decoding import prepared
from ckpt_transport.errors import TransportError
from ckpt_transport.memory import Buffer, Fence, copy_bytes
from ckpt_transport.testing.side_channel import Broken, SideChannel
from ckpt_transport.testing.wrappers import ForwardingReceipt
from ckpt_transport.transports.interface import Endpoint, Span, Transfer
from ckpt_transport.transports.operations import Completion, MemoryRegion, Receipt

POLLS = 100
"""How many chances something that must not happen is given."""
UNTOUCHED = 0xA5
"""What a receiver's memory holds before anything arrives."""


PRIME = 65_521
"""Positions after which the bytes of a region repeat: a prime, so that nothing cut at a power of two looks right."""
REGION_STEP, USES_STEP = 12_289, 7_919
"""Positions by which two regions, and two runs of 256 uses, lie apart."""


@functools.cache
def _tile() -> torch.Tensor:
    one = torch.randint(0, 256, (PRIME,), dtype=torch.uint8, generator=torch.Generator().manual_seed(18))
    return one.repeat(4)


def pattern(use: int, region: int, offset: int, nbytes: int) -> torch.Tensor:
    """Make what a region that is filled for ``use`` holds from ``offset`` on: the same bytes on every rank.

    They tell where they belong. Among the uses of one run of 256, every byte differs from the one at the same place.
    Runs of bytes from different places, regions or runs of uses are different.
    """
    tile = _tile()
    start = (offset + region * REGION_STEP + use // 256 * USES_STEP) % PRIME
    if start + nbytes > tile.numel():
        tile = tile[:PRIME].repeat((start + nbytes) // PRIME + 1)
    return tile[start : start + nbytes] + torch.tensor(use % 256, dtype=torch.uint8)


def sent(use: int, span: Span) -> torch.Tensor:
    """Make the bytes that ``span`` sends from a region that is filled for ``use``."""
    return pattern(use, span.region, span.offset, span.nbytes)


def refuses(what: str, action: Callable[[], object], *kinds: type[Exception]) -> Exception:
    """Run ``action`` and return the error of one of these ``kinds`` that it raises.

    Raises:
        Broken: it raises something else, or nothing.
    """
    promised = " or ".join(kind.__name__ for kind in kinds)
    try:
        action()
    except kinds as error:
        return error
    except Exception as error:
        raise Broken(f"{what} raised {type(error).__name__} ({error}), and {promised} is promised") from error
    raise Broken(f"{what} was accepted, and {promised} is promised")


class RouteFixture:
    """Drives one rank's end of a route under test.

    Attributes:
        endpoint: the one under test.
        sources: what this rank may send, when it is a sender; ``regions`` are the same, registered.
        inbox: what this rank receives into; None where the transport maps memory.
        side_channel, number: this rank's.
    """

    def __init__(
        self, side_channel: SideChannel, number: int, endpoint: Endpoint, sizes: Sequence[int], senders: Sequence[int]
    ) -> None:
        self.side_channel, self.number, self.endpoint, self.sizes = side_channel, number, endpoint, tuple(sizes)
        self.senders = tuple(senders)
        self.sources: list[Buffer] = []
        self.regions: list[MemoryRegion] = []
        self.inbox: Buffer | None = None
        self.inbox_region: MemoryRegion | None = None
        self._seq = 0

    # -- memory -------------------------------------------------------------------------------------------------

    def offer(self, *buffers: Buffer) -> None:
        """Register memory to send from."""
        self.sources += buffers
        self.regions += [self.endpoint.register(buffer) for buffer in buffers]

    def connect(self) -> None:
        """Tell every rank the senders' descriptors. All ranks call it."""
        mine = msgspec.msgpack.encode([region.descriptor for region in self.regions])
        said = self.side_channel.meet(mine)
        self.endpoint.connect(
            {sender: msgspec.msgpack.decode(said[sender], type=prepared(list[bytes])) for sender in self.senders}
        )
        self.side_channel.meet()

    def fill(self, seed: int, transfer: Transfer | None = None) -> None:
        """Write the pattern of ``seed`` where this rank sends from: to all of it, or to what ``transfer`` sends."""
        if transfer is None:
            for index, source in enumerate(self.sources):
                copy_bytes(source.tensor, pattern(seed, index, 0, source.nbytes))
        elif transfer.sender == self.number:
            for span in transfer.spans:
                copy_bytes(self.sources[span.region].tensor[span.offset : span.offset + span.nbytes], sent(seed, span))

    def poison(self, seed: int, transfer: Transfer) -> None:
        """Write, where this rank is to receive ``transfer``, bytes of which none is the one that belongs there."""
        if self.inbox is not None and transfer.sender != self.number:
            for span in transfer.spans:
                copy_bytes(self.inbox.tensor[span.local : span.local + span.nbytes], ~sent(seed, span))

    def replace(self, sizes: Sequence[int], make: Callable[[int], Buffer]) -> None:
        """Close what the senders have registered, and register and describe other memory. All ranks call it."""
        for region in self.regions:
            region.close()
        self.sources, self.regions, self.sizes = [], [], tuple(sizes)
        if self.number in self.senders:
            self.offer(*map(make, range(len(sizes))))
        self.connect()

    def pattern(self, seed: int, region: int) -> torch.Tensor:
        """What a region that is filled with ``seed`` holds, on the host."""
        return pattern(seed, region, 0, self.sizes[region])

    # -- transfers ----------------------------------------------------------------------------------------------

    def transfer(self, *spans: Span, sender: int = 0) -> Transfer:
        """The next transfer, to all other ranks. Every rank calls it alike."""
        self._seq += 1
        receivers = tuple(rank for rank in self.endpoint.group.ranks if rank != sender)
        return Transfer(self._seq - 1, sender, receivers, spans)

    def post(self, transfer: Transfer) -> Receipt:
        """Post this rank's side. What comes back for a send has no views."""
        if transfer.sender == self.number:
            return _Sent(self.endpoint.post_send(transfer, self.regions))
        return self.endpoint.post_recv(transfer, self.inbox_region)

    def wait(self, completion: Completion, transfer: Transfer) -> None:
        """Poll until it is done."""
        self.side_channel.until(completion.done, f"{self._side(transfer)} to be done")

    def carry(self, transfer: Transfer, seed: int) -> None:
        """The whole of one transfer, of bytes filled with ``seed``: poison, post, wait, compare, release."""
        self.poison(seed, transfer)
        self.complete(self.post(transfer), transfer, seed)

    def complete(self, posted: Receipt, transfer: Transfer, seed: int) -> None:
        """What follows a post: wait, compare, release."""
        self.wait(posted, transfer)
        self.compare(posted, transfer, seed)
        posted.release()

    def compare(self, receipt: Receipt, transfer: Transfer, seed: int) -> None:
        """At a receiver: are these the bytes that were sent, in the views and in the inbox?"""
        if transfer.sender == self.number:
            return
        views = receipt.views()
        if len(views) != len(transfer.spans):
            raise Broken(f"{self._side(transfer)} has {len(views)} views for {len(transfer.spans)} spans")
        for index, (span, view) in enumerate(zip(transfer.spans, views, strict=True)):
            expected = sent(seed, span)
            self.same(view, expected, f"view {index} of {self._side(transfer)}")
            if self.inbox is not None:
                landed = self.inbox.tensor[span.local : span.local + span.nbytes]
                if landed.data_ptr() != view.data_ptr():
                    self.same(landed, expected, f"the memory at span {index} of {self._side(transfer)}")

    def untouched(self, transfers: Iterable[Transfer]) -> None:
        """At a receiver with an inbox: was nothing written outside the spans of these transfers?"""
        if self.inbox is None:
            return
        outside = torch.ones(self.inbox.nbytes, dtype=torch.bool)
        for transfer in transfers:
            if transfer.sender != self.number:
                for span in transfer.spans:
                    outside[span.local : span.local + span.nbytes] = False
        wrong = (outside & (self.inbox.tensor.cpu() != UNTOUCHED)).nonzero()
        if wrong.numel():
            raise Broken(f"{wrong.numel()} bytes outside all spans were overwritten, the first at {int(wrong[0])}")

    def same(self, got: torch.Tensor, expected: torch.Tensor, what: str) -> None:
        """
        Raises:
            Broken: these are not the same bytes.
        """
        if got.dtype is not torch.uint8 or got.shape != expected.shape:
            raise Broken(
                f"{what} has shape {tuple(got.shape)} and dtype {got.dtype}; {expected.numel()} uint8 are promised"
            )
        got = got.cpu()
        if not torch.equal(got, expected):
            wrong = (got != expected).numpy()
            first = int(wrong.argmax())
            raise Broken(
                f"{wrong.sum()} of {expected.numel()} bytes in {what} are not those that were sent; "
                f"byte {first} is {int(got[first]):#04x} instead of {int(expected[first]):#04x}"
            )

    def end(self, completion: Receipt, transfer: Transfer, seed: int) -> None:
        """Poll until it is over, well (then the bytes must be right) or badly."""

        def over() -> bool:
            try:
                if not completion.done():
                    return False
            except TransportError:
                return True
            self.compare(completion, transfer, seed)
            completion.release()
            return True

        self.side_channel.until(over, f"{self._side(transfer)} to end in whatever way")

    # -- what must not happen -----------------------------------------------------------------------------------

    def stays_open(self, completion: Completion, transfer: Transfer, why: str) -> None:
        """Poll many times: it must not be done."""
        for _ in range(POLLS):
            if completion.done():
                raise Broken(f"{self._side(transfer)} said done, although {why}")
            self.side_channel.listen()

    def fails(self, completion: Completion, transfer: Transfer, why: str) -> TransportError:
        """Poll until it raises a TransportError, which is returned."""
        caught: list[TransportError] = []

        def failed() -> bool:
            try:
                if completion.done():
                    raise Broken(f"{self._side(transfer)} said done, although {why}")
            except TransportError as error:
                caught.append(error)
            return bool(caught)

        self.side_channel.until(failed, f"{self._side(transfer)} to fail, since {why}")
        return caught[0]

    def breaks(self, transfer: Transfer, seed: int, why: str) -> TransportError:
        """Go on with ``transfer``, and others like it, until one fails; the endpoint must refuse all that follow."""
        caught: list[TransportError] = []
        spans = transfer.spans
        posted: Receipt | None = None

        def broke() -> bool:
            nonlocal transfer, posted
            try:
                posted = posted or self.post(transfer)
                if posted.done():
                    self.compare(posted, transfer, seed)
                    posted.release()
                    transfer, posted = self.transfer(*spans), None
            except TransportError as error:
                caught.append(error)
            return bool(caught)

        self.side_channel.until(broke, f"rank {self.number} to get an error, since {why}")
        refuses("a post after an operation had failed", lambda: self.post(self.transfer(*spans)), TransportError)
        return caught[0]

    def _side(self, transfer: Transfer) -> str:
        sends = transfer.sender == self.number
        return f"the {'send' if sends else 'receive'} of transfer {transfer.seq} at rank {self.number}"


class _Sent(ForwardingReceipt):
    """A send, in the shape of a receive."""

    def fence(self) -> Fence | None:
        return self.inner.fence()
