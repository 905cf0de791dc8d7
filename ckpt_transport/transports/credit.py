"""Credit: a receiver gives memory back to its sender, and says so of many transfers at once where nobody waits."""

from __future__ import annotations

from collections import deque

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
        self._receivers: dict[int, tuple[int, ...]] = {}
        self._up_to: dict[int, int] = {}
        """Of each receiver, up to which transfer it has given back all."""
        self._slowest: dict[tuple[int, ...], tuple[int, int]] = {}
        """Of those that get the same transfers, which of them was behind the others, and up to which all had given
        back: while that one says nothing, nobody else is looked at."""
        self._missing: dict[int, set[int]] = {}
        """Of each transfer that somebody has given back by itself, who may not have."""

    def lend(self, seq: int, receivers: tuple[int, ...]) -> None:
        self._receivers[seq] = receivers
        if receivers not in self._slowest:
            self._slowest[receivers] = receivers[0], -1
            self._up_to = dict.fromkeys(receivers, -1) | self._up_to

    def returned(self, receiver: int, seq: int) -> None:
        """One transfer was given back."""
        if seq in self._receivers:
            self._missing.setdefault(seq, set(self._receivers[seq])).discard(receiver)

    def all_returned(self, receiver: int, seq: int) -> None:
        """All transfers up to this one were."""
        self._up_to[receiver] = max(self._up_to.get(receiver, -1), seq)

    def are_over(self, seq: int) -> bool:
        """Whether every receiver has given a transfer back. Not asked again after True."""
        missing = self._missing.get(seq)
        if not (self._all_up_to(seq) if missing is None else self._none_of(missing, seq)):
            return False
        del self._receivers[seq]
        self._missing.pop(seq, None)
        return True

    def _none_of(self, missing: set[int], seq: int) -> bool:
        while missing:
            receiver = next(iter(missing))
            if self._up_to[receiver] < seq:
                return False
            missing.remove(receiver)
        return True

    def _all_up_to(self, seq: int) -> bool:
        receivers, up_to = self._receivers[seq], self._up_to
        slowest, floor = self._slowest[receivers]
        if floor < seq <= up_to[slowest]:
            slowest = min(receivers, key=up_to.__getitem__)
            floor = up_to[slowest]
            self._slowest[receivers] = slowest, floor
        return floor >= seq
