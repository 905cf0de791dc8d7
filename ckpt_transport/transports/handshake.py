"""READY and ACK: how a sender lends its memory to its receivers and learns when it has it back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from ckpt_transport.errors import TransferError
from ckpt_transport.transports.credit import Debts, OpenLoans
from ckpt_transport.transports.interface import Control, Descriptor, Group, Transfer
from ckpt_transport.transports.operations import Completion, MemoryRegion
from ckpt_transport.transports.polled import Poll, PolledEndpoint, PolledOperation, Signal, SignalKind, encoded


class HandshakeEndpoint(PolledEndpoint):
    """Sends by saying READY to every receiver; terminal when each of them has said ACK."""

    def __init__(self, group: Group, control: Control) -> None:
        super().__init__(group, control)
        self._peers: dict[int, Sequence[Descriptor]] = {}
        self._loans = OpenLoans()
        self._debts: defaultdict[int, Debts] = defaultdict(Debts)

    def _connect(self, peers: Mapping[int, Sequence[Descriptor]]) -> None:
        self._peers = dict(peers)

    def _on_ready(self, sender: int, seq: int) -> None:
        self._debts[sender].hear()

    def _on_ack(self, receiver: int, seq: int, *, and_before: bool) -> None:
        if and_before:
            self._loans.all_returned(receiver, seq)
        else:
            self._loans.returned(receiver, seq)

    def _send(self, transfer: Transfer, regions: Sequence[MemoryRegion]) -> Completion:
        self._check_spans(transfer, regions)
        self._loans.lend(transfer.seq, transfer.receivers)
        self._announce(transfer)
        used = [regions[number] for number in {span.region for span in transfer.spans}]
        return PolledOperation(self, transfer, [lambda: self._all_acknowledged(transfer)], used)

    def _all_acknowledged(self, transfer: Transfer) -> bool:
        return self._loans.are_over(transfer.seq)

    def _agreed(self, transfer: Transfer) -> Poll:
        self._debts[transfer.sender].post(transfer.seq)
        return super()._agreed(transfer)

    def _acknowledge(self, transfer: Transfer) -> None:
        said = self._debts[transfer.sender].give_back(transfer)
        if said is None:
            return
        count, seq = said
        if count > 1:
            self._progress()  # raises where one of those before was announced and never received
        payload = encoded(Signal(SignalKind.ACK if count == 1 else SignalKind.ACK_UP_TO, seq))
        if transfer.reused:
            self.control.send(transfer.sender, payload)
        else:
            self.control.mention(transfer.sender, payload)

    def _send_each(self, receivers: Sequence[int], payload: bytes) -> None:
        self.control.send_each(receivers, payload)

    def _descriptor(self, sender: int, region: int) -> Descriptor:
        descriptors = self._peers.get(sender, ())
        if not 0 <= region < len(descriptors):
            raise TransferError(
                f"rank {sender} described {len(descriptors)} regions on route {self.group.route}, "
                f"and the transfer names region {region}"
            )
        return descriptors[region]
