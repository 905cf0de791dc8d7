"""Implements the ``ucx`` transport."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ckpt_transport import PeerLostError, TransportError
from ckpt_transport.spi import (
    CONTIGUOUS,
    Availability,
    Buffer,
    Control,
    Descriptor,
    Endpoint,
    Group,
    MessageEndpoint,
    Poll,
    Reach,
    Traits,
    Transport,
    expected_bandwidth,
    ucx_devices,
    use_device,
)
from ckpt_transport_ucx.worker import Worker, has_verbs, installed

SEQ_BITS, SENDER_BITS, SPAN_BITS = 32, 12, 20
"""How the 64 bits of UCX's tag are shared out."""
NO_DEVICE = -1
"""What ``torch.cuda.device`` takes for "leave it as it is"."""


HELLO = (2**SEQ_BITS - 1, 0)
"""The tag of the first message from a sender to each member: it opens the connection."""


class UcxEndpoint(MessageEndpoint):
    """Has a worker of its own, whose native thread moves the bytes; polls only look whether it has."""

    def __init__(self, group: Group, control: Control, timeout: float) -> None:
        super().__init__(group, control)
        with torch.cuda.device(self.device if self.device.type == "cuda" else NO_DEVICE):
            use_device(self.device)
            self._worker = Worker(self.device)
        self._hellos: dict[tuple[int, int], Poll] = {}
        self._addresses = self._meet_members(self._worker.address, timeout)

    def allocate(self, nbytes: int) -> Buffer:
        """Memory of the GPU that this rank uses on the route, else of the host."""
        return Buffer(torch.empty(nbytes, dtype=torch.uint8, device=self.device))

    def _connect(self, peers: Mapping[int, Sequence[Descriptor]]) -> None:
        """Have connections made now, off the data path, and while everybody is there: UCX survives the loss of a
        connection, and not every failure to make one."""
        for sender in peers:
            receivers = self.group.peers if sender == self.group.rank else (self.group.rank,)
            for receiver in receivers:
                if (sender, receiver) not in self._hellos:
                    self._hellos[sender, receiver] = self._say_hello(sender, receiver)

    def _say_hello(self, sender: int, receiver: int) -> Poll:
        word = torch.zeros(1, dtype=torch.uint8, device=self.device)
        if sender == self.group.rank:
            return self._send_to(receiver, HELLO, word)
        return self._receive_from(sender, HELLO, word)

    def _send_to(self, receiver: int, tag: tuple[int, int], tensor: torch.Tensor) -> Poll:
        doing, full_tag = f"sending transfer {tag[0]} to rank {receiver}", self._tag(self.group.rank, tag)
        try:
            return self._worker.send(self._addresses[receiver], full_tag, tensor, doing).ended
        except PeerLostError as error:
            return _lost(error)

    def _receive_from(self, sender: int, tag: tuple[int, int], tensor: torch.Tensor) -> Poll:
        doing = f"receiving transfer {tag[0]} from rank {sender}"
        return self._worker.receive(self._tag(sender, tag), tensor, doing).ended

    def _tag(self, sender: int, tag: tuple[int, int]) -> int:
        (seq, span), index = tag, self.group.ranks.index(sender)
        if seq >> SEQ_BITS or index >> SENDER_BITS or span >> SPAN_BITS:
            raise TransportError(
                f"span {span} of transfer {seq} from member {index} has no tag; 'ucx' has {SEQ_BITS} bits for "
                f"transfers, {SENDER_BITS} for members and {SPAN_BITS} for spans"
            )
        return (seq << SENDER_BITS | index) << SPAN_BITS | span

    def _shut(self) -> None:
        self._worker.close()


def _lost(error: PeerLostError) -> Poll:
    """What a poll says of a send that could not be started: so the peer gets its chance to say why it is gone."""

    def ended() -> bool:
        raise error

    return ended


class UcxTransport(Transport):
    """Is the message transport over UCX: RDMA where UCX and the machine have it, else shared memory or TCP."""

    name = "ucx"
    traits = Traits(
        reach=Reach.NETWORK,
        sends_from=CONTIGUOUS,
        bandwidth=0.7e9,
        latency=400e-6,
    )

    @classmethod
    def probe(cls) -> Availability:
        if not installed():
            return Availability(False, "UCXX is not installed", "pip install 'ckpt-transport[ucx]'")
        return Availability(True)

    def expected_bandwidth(self) -> float:
        return max(self.traits.bandwidth, expected_bandwidth(ucx_devices()) if has_verbs() else 0.0)

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        return UcxEndpoint(group, control, timeout)
