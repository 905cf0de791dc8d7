"""Whether the members of a route hold the same record of each transfer, so that two plans never mix unnoticed."""

from __future__ import annotations

from ckpt_transport.errors import TransferError
from ckpt_transport.transports.interface import Transfer


class Agreement:
    """What the senders have said about their transfers, next to what this rank has posted.

    A sender announces each transfer with its digest; that costs one control message to each receiver. A receive is
    allowed to end only after the announcement has arrived and says the same as the receiver's own record.
    """

    def __init__(self, route: str) -> None:
        self._route = route
        self._announced: dict[int, tuple[int, int]] = {}
        self._newest: dict[int, int] = {}
        self._expected: set[int] = set()
        self._heard: list[int] = []
        """Announced since the last check."""
        self._passed = 0
        """Of earlier transfers than this one, those announced were checked."""

    def hear(self, sender: int, seq: int, digest: int) -> None:
        """``sender`` says that it sends transfer ``seq``, whose digest is ``digest``.

        Raises:
            TransferError: another rank has said that it sends the same one.
        """
        other = self._announced.setdefault(seq, (sender, digest))[0]
        if other != sender:
            raise self._differ(f"ranks {other} and {sender} both send transfer {seq}")
        self._newest[sender] = seq
        self._heard.append(seq)

    def expect(self, transfer: Transfer) -> None:
        """This rank has posted the receive."""
        self._expected.add(transfer.seq)

    def check(self, next_seq: int) -> None:
        """Look for a transfer that was announced and that this rank has gone past without posting its receive.

        Raises:
            TransferError: there is one.
        """
        late = [seq for seq in self._heard if seq < self._passed and seq in self._announced]
        passed = [seq for seq in self._announced if self._passed <= seq] if self._passed < next_seq else []
        for seq in (*late, *passed):
            if seq < next_seq and seq not in self._expected:
                sender = self._announced[seq][0]
                raise self._differ(f"rank {sender} sends transfer {seq} to this rank, which does not expect it")
        self._heard.clear()
        self._passed = max(self._passed, next_seq)

    def reached(self, transfer: Transfer) -> bool:
        """Whether the sender has posted ``transfer`` too. Not called again after True.

        Raises:
            TransferError: it has posted something else.
        """
        announced = self._announced.get(transfer.seq)
        if announced is None:
            if self._newest.get(transfer.sender, -1) > transfer.seq:
                raise self._differ(f"rank {transfer.sender} has gone past transfer {transfer.seq} without sending it")
            return False
        sender, digest = announced
        if sender != transfer.sender:
            raise self._differ(f"transfer {transfer.seq} comes from rank {sender}, expected from {transfer.sender}")
        if digest != transfer.digest:
            raise self._differ(
                f"rank {sender} holds another record of transfer {transfer.seq} than this rank, "
                f"which expects {transfer.nbytes} bytes in {len(transfer.spans)} spans for ranks {transfer.receivers}"
            )
        del self._announced[transfer.seq]
        self._expected.discard(transfer.seq)
        return True

    def _differ(self, what: str) -> TransferError:
        return TransferError(f"the members of route {self._route} do not run the same plan: {what}")
