"""A transport gets a control channel with each route; here it runs over a mailbox."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec

from ckpt_transport.control.mailbox import Mailbox
from ckpt_transport.control.messages import RouteMessage
from ckpt_transport.errors import MessageError, TransferTimeout
from ckpt_transport.transports.interface import Group

PLAIN = -1
NEWS_SECONDS = 0.5
"""How often those that wait for others hear who has come."""
CHECK_SECONDS = 0.02
"""How often whoever reads messages looks for members that are gone: each look costs as much as there are members."""
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[int, bytes]).decode


class RouteControl:
    """Implements :class:`ckpt_transport.transports.interface.Control` on a mailbox.

    Args:
        mailbox: this participant's.
        group: the route's members and which one this is.
        addresses: rank to mailbox address, for every member.
    """

    def __init__(self, mailbox: Mailbox, group: Group, addresses: Mapping[int, str]) -> None:
        self._mailbox, self._group = mailbox, group
        self._addresses = {rank: addresses[rank] for rank in group.ranks}
        self._arrived = mailbox.open_route(group.route, self._addresses)
        self._watched = [address for address in self._addresses.values() if address != mailbox.address]
        self._watch: Callable[[], None] | None = None
        self._check_at = 0.0
        self._last: tuple[bytes, int, Sequence[bytes]] | None = None
        """What was sent last, and as which frames: the same payload often goes to one member after the other."""
        self._round = 0
        self._rounds: defaultdict[int, dict[int, bytes]] = defaultdict(dict)

    @contextmanager
    def watched_by(self, watch: Callable[[], None]) -> Iterator[None]:
        """Within the block, whoever waits for a message calls ``watch``, which ends the wait by raising."""
        self._watch = watch
        try:
            yield
        finally:
            self._watch = None

    def send(self, rank: int, payload: bytes) -> None:
        self._send(rank, PLAIN, payload)

    def send_each(self, ranks: Iterable[int], payload: bytes) -> None:
        frames = self._encoded(PLAIN, payload)
        self._mailbox.by_courier.tell_each((self._addresses[rank], frames) for rank in ranks)

    def mention(self, rank: int, payload: bytes) -> None:
        self._mailbox.by_courier.mention(self._addresses[rank], self._encoded(PLAIN, payload))

    def receive(self) -> tuple[int, bytes] | None:
        arrived = self._arrived
        if not arrived:
            self._mailbox.pump(0)
        while arrived:
            rank, message = arrived.popleft()
            if message.round == PLAIN:
                return rank, message.payload
            self._take_in(rank, message)
        self._check()
        return None

    def wake(self) -> None:
        self._mailbox.wake()

    def exchange(self, payload: bytes, timeout: float) -> dict[int, bytes]:
        """The first member of the group gathers, and hands out what it has: when it has all, and now and then before.

        So there are two messages for each member and no connections between the others, and whoever does not turn up
        is known everywhere.
        """
        deadline = time.monotonic() + timeout
        current, self._round = self._round, self._round + 1
        found = self._rounds[current]
        found[self._group.rank] = payload
        if not self._gathers:
            self._send(self._group.ranks[0], current, payload)
        told_at = time.monotonic() + NEWS_SECONDS
        held: list[tuple[int, RouteMessage]] = []
        arrived = self._arrived
        while len(found) < self._group.size:
            self._mailbox.pump(0.01)
            self._check()
            while arrived:
                rank, message = arrived.popleft()
                if message.round == PLAIN:
                    held.append((rank, message))
                else:
                    self._take_in(rank, message)
            if time.monotonic() > deadline:
                missing = sorted(set(self._group.ranks) - found.keys())
                if not self._gathers and len(found) == 1:
                    missing = [self._group.ranks[0]]
                raise TransferTimeout(f"route {self._group.route}: ranks {missing} did not turn up in {timeout:g} s")
            if self._gathers and time.monotonic() > told_at and len(found) < self._group.size:
                self._hand_out(current)
                told_at = time.monotonic() + NEWS_SECONDS
        if self._gathers:
            self._hand_out(current)
        arrived.extendleft(reversed(held))
        return self._rounds.pop(current)

    @property
    def _gathers(self) -> bool:
        return self._group.index == 0

    def _hand_out(self, number: int) -> None:
        """Tell those that have come who has come, and with what."""
        found = self._rounds[number]
        everything = _encode(found)
        for rank in found.keys() - {self._group.rank}:
            self._send(rank, number, everything)

    def close(self) -> None:
        """Drop what still arrives for this route."""
        self._mailbox.close_route(self._group.route)

    def _take_in(self, rank: int, message: RouteMessage) -> None:
        """File what belongs to an exchange. Nobody can be further than the one that this member has not begun."""
        if message.round not in (self._round - 1, self._round):
            return
        if self._gathers:
            self._rounds[message.round][rank] = message.payload
        elif rank == self._group.ranks[0]:
            try:
                self._rounds[message.round].update(_decode(message.payload))
            except msgspec.DecodeError as error:
                raise MessageError(f"route {message.route}: what rank {rank} hands out is unreadable") from error

    def _check(self) -> None:
        if time.monotonic() < self._check_at:
            return
        self._mailbox.check_alive(self._watched)
        self._check_at = time.monotonic() + CHECK_SECONDS
        if self._watch is not None:
            self._watch()

    def _send(self, rank: int, round_number: int, payload: bytes) -> None:
        self._mailbox.send_encoded(self._addresses[rank], self._encoded(round_number, payload))

    def _encoded(self, round_number: int, payload: bytes) -> Sequence[bytes]:
        if self._last is None or self._last[0] is not payload or self._last[1] != round_number:
            message = RouteMessage(self._group.route, round_number, payload)
            self._last = payload, round_number, self._mailbox.encode(message)
        return self._last[2]
