"""Credit: a receiver gives memory back to its sender, and says so of many transfers at once where nobody waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ckpt_transport.transports.interface import Transfer

SAID = 16
"""So many messages say how far the receivers of a sender are, whose memory it does not wait for; or one of each."""


class Debts:
    """What one receiver holds of one sender's, and when to say that it was given back."""

    def __init__(self) -> None:
        self._posted: deque[int] = deque()
        self._early: set[int] = set()
        self._given_back, self._unsaid = -1, 0
        self._held = self._most_held = 0

    def post(self, seq: int) -> None:
        """A receive was posted."""
        self._posted.append(seq)

    def hear(self) -> None:
        """The sender has lent another one."""
        self._held += 1
        self._most_held = max(self._held, self._most_held)

    def give_back(self, transfer: Transfer) -> tuple[int, int] | None:
        """A transfer is not needed any more.

        Returns: how many transfers are to be given back, and the last of them, up to which all are meant; None where
        they are said later.
        """
        self._held -= 1
        if transfer.seq != self._posted[0]:
            self._early.add(transfer.seq)
            return 1, transfer.seq
        self._given_back = self._posted.popleft()
        self._unsaid += 1
        while self._posted and self._posted[0] in self._early:
            self._given_back = self._posted.popleft()
            self._early.remove(self._given_back)
            self._unsaid += 1
        turns = max(SAID // len(transfer.receivers), 1)
        if not transfer.reused and self._held > 0 and self._unsaid < self._most_held // turns:
            return None
        said, self._unsaid = self._unsaid, 0
        if self._held <= 0:
            self._most_held = 0
        return said, self._given_back


class OpenLoans:
    """What one sender has lent, and who has not given it back."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[int]] = {}
        """Of each transfer, the receivers of which it is not known, the last first."""
        self._up_to: dict[int, int] = {}
        """Of each receiver, up to which transfer it has given back all."""
        self._single: dict[int, set[int]] = {}

    def lend(self, seq: int, receivers: Iterable[int]) -> None:
        self._waiting[seq] = list(receivers)

    def returned(self, receiver: int, seq: int) -> None:
        """One transfer was given back."""
        self._single.setdefault(seq, set()).add(receiver)

    def all_returned(self, receiver: int, seq: int) -> None:
        """All transfers up to this one were."""
        self._up_to[receiver] = max(self._up_to.get(receiver, -1), seq)

    def are_over(self, seq: int) -> bool:
        """Whether every receiver has given a transfer back. Not asked again after True."""
        waiting, up_to, single = self._waiting[seq], self._up_to, self._single.get(seq, ())
        while waiting:
            last = waiting[-1]
            if up_to.get(last, -1) < seq and last not in single:
                return False
            waiting.pop()
        del self._waiting[seq]
        self._single.pop(seq, None)
        return True
