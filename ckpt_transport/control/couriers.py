"""Whoever talks to many has couriers: one for each sixteen, which hands on to the others what is said to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ckpt_transport.control.messages import Dispatch

FAN_OUT = 16
"""So many are talked to by one courier, itself included. Who talks to no more of them needs none."""
LARGE_BYTES = 64 << 10
"""What is longer goes to each by itself: couriers are for what costs more to say than to copy."""

Encoded = Sequence[bytes]
"""A message as frames."""


def in_groups(hosts: Iterable[Sequence[str]]) -> Iterator[Sequence[str]]:
    """Those for one courier each, of one host each, about as many in each group; none where there are few in all."""
    hosts = list(hosts)
    if sum(map(len, hosts)) <= FAN_OUT:
        return
    for addresses in hosts:
        groups = -(-len(addresses) // FAN_OUT)
        for number in range(groups):
            yield addresses[number * len(addresses) // groups : (number + 1) * len(addresses) // groups]


class Couriers:
    """Knows by whom each is reached. A courier is used when it was seen to reach those it is for."""

    def __init__(self) -> None:
        self._planned: dict[str, str] = {}
        self._seen: dict[str, str] = {}
        self._used: dict[str, str] = {}

    def plan(self, groups: Iterable[Sequence[str]]) -> Mapping[str, Sequence[str]]:
        """Have the first of each group be the courier of all of it.

        Those that were seen to be reached are so from now on.

        Returns: whom each courier has yet to be seen to reach.
        """
        groups = list(groups)
        self._planned = {address: group[0] for group in groups for address in group}
        self._seen = dict(self._seen.items() & self._planned.items())
        self._used = dict(self._seen)
        unseen = {group[0]: [address for address in group if address not in self._seen] for group in groups}
        return {courier: addresses for courier, addresses in unseen.items() if addresses}

    def brings(self, courier: str, address: str) -> bool:
        """Whether that courier is the one for that address."""
        return self._planned.get(address) == courier

    def saw(self, courier: str, address: str) -> None:
        """The courier has brought an answer from there."""
        if self.brings(courier, address):
            self._seen[address] = courier

    def forget(self, address: str) -> None:
        """That one is not there any more, neither as a courier."""
        for known in (self._planned, self._seen, self._used):
            known.pop(address, None)
            for other in [other for other, courier in known.items() if courier == address]:
                del known[other]

    def sort(
        self, messages: Iterable[tuple[str, Encoded]], *, answered: bool
    ) -> Iterator[tuple[str, Encoded | Dispatch]]:
        """What to send to whom so that each gets its message; what is the same object for several travels once."""
        by_courier: dict[str, list[tuple[list[str], bytes]]] = {}
        for address, frames in messages:
            courier = self._used.get(address)
            if courier is None or len(frames[-1]) > LARGE_BYTES:
                yield address, frames
                continue
            parts = by_courier.setdefault(courier, [])
            if not parts or parts[-1][1] is not frames[-1]:
                parts.append(([], frames[-1]))
            parts[-1][0].append(address)
        for courier, parts in by_courier.items():
            yield courier, Dispatch(tuple((tuple(addresses), body) for addresses, body in parts), answered)
